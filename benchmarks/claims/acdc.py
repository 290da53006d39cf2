"""What the claims on ACDC share: the patients, the network and its feed, the cost of a step, a patient's score."""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.claims.claim_table import Claim, claim_row
from benchmarks.claims.equal_time import time_in_rounds
from benchmarks.claims.run_log import Measured, Run, say
from benchmarks.claims.training import Base, Recipe
from data_prep.acdc import read_acdc
from uumamba.config import RunConfig, read_config
from uumamba.data.case import Case
from uumamba.data.dataset import PatchDataset, batches
from uumamba.data.prepared import PreparedFolder
from uumamba.inference import Predictor
from uumamba.metrics import dice_coefficient
from uumamba.pipelines.build import build_loss, build_net
from uumamba.pipelines.prepare import prepare
from uumamba.pipelines.split import split_cases
from uumamba.runtime.files import write_json
from uumamba.runtime.seeds import seed_everything
from uumamba.types import Batch

CONFIG = "acdc_cpu"
SETTINGS = ("preprocess.spacing_mm=[null, 2.0, 2.0]", "training.patch_size=[96, 96]", "training.batch_size=4")
FOLD, TRAINING_PATIENTS = "0", 24
SECONDS, SEEDS = 300, 3
STEPS_A_ROUND, ROUNDS = 5, 5
WARMUP = 20

Feed = Iterator[tuple[int, Batch]]


@dataclass(frozen=True)
class Start:
    """What a method trains with, before it makes its recipe of it.

    Attributes:
        net: the configuration's, initialised with the run's seed.
        loss: ``loss(logits, label)``; its parameters learn.
        base: from parameters to an optimizer.
        engine: what every optimizer of the family takes.
    """

    net: nn.Module
    loss: nn.Module
    base: Base
    engine: Mapping[str, Any]


def acdc_options(
    description: str | None, arguments: Sequence[str] | None, *, switches: Mapping[str, str] | None = None
) -> argparse.Namespace:
    """What both benchmarks are told on the command line; a quick one has ``out/quick`` for its ``out``.

    ``switches`` are one's own, off unless given, with what each does.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acdc", type=Path, required=True, help="ACDC as it was downloaded; only read")
    parser.add_argument("--out", type=Path, required=True, help="gets the prepared patients and a JSON line a run")
    parser.add_argument("--json", type=Path, help="where the table goes")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, a thread each")
    parser.add_argument("--quick", action="store_true", help="few patients and steps, in OUT/quick")
    for name, what in (switches or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=what)
    options = parser.parse_args(arguments)
    options.out = options.out / "quick" if options.quick else options.out
    return options


def acdc_config(settings: Sequence[str] = ()) -> RunConfig:
    """The configuration of ``acdc_cpu`` on the coarser grid, with further settings."""
    return read_config(CONFIG, [*SETTINGS, *settings])


def prepare_patients(
    raw: Path, out: Path, config: RunConfig, *, training: int, validation: int | None, workers: int = 2
) -> Path:
    """Prepare some patients of ACDC's training set, in the folds that they have among all 100."""
    manifest, bad = read_acdc(raw)
    cases = manifest.select(split="training")
    chosen = {
        *spread_over_groups([case for case in cases if case.fold != int(FOLD)], training),
        *spread_over_groups([case for case in cases if case.fold == int(FOLD)], validation),
    }
    some = replace(manifest, cases=tuple(case for case in cases if case.patient_id in chosen))
    prepare(some, bad, recipe=config.preprocess.build(), out=out, workers=workers, raw=raw)
    return out


def spread_over_groups(cases: Sequence[Case], count_wanted: int | None) -> list[str]:
    """Patients in turn from each diagnosis, in order of their ids; all of them for None."""
    waiting: dict[str, list[str]] = {}
    for case in sorted(cases, key=lambda case: case.patient_id):
        queue = waiting.setdefault(case.group or "", [])
        if case.patient_id not in queue:
            queue.append(case.patient_id)
    order = [
        queue[turn]
        for turn in range(max(map(len, waiting.values()), default=0))
        for _, queue in sorted(waiting.items())
        if turn < len(queue)
    ]
    return order[:count_wanted]


def acdc_start(config: RunConfig, prepared: Path, seed: int) -> Start:
    """The configuration's network, loss and base."""
    seed_everything(seed)
    net = build_net(config, classes=len(PreparedFolder(prepared).manifest.structures) + 1)
    clipped = {"max_grad_norm": config.optim.max_grad_norm}
    return Start(net, build_loss(config), config.optim.base.build(), clipped)


def acdc_feed(config: RunConfig, prepared: Path, seed: int, *, cases: Sequence[str] | None = None) -> Feed:
    """Augmented patches without end of the training cases, or of those that are given, one of them perhaps twice."""
    folder = PreparedFolder(prepared)
    dataset = PatchDataset(
        folder,
        split_cases(folder.manifest, FOLD)[0] if cases is None else cases,
        patch_size=config.training.patch_size,
        batch_size=config.training.batch_size,
        batches_per_epoch=config.training.batches_per_epoch,
        foreground_fraction=config.training.foreground_fraction,
        seed=seed,
    )
    augment = config.augment.build(patch_size=config.training.patch_size)
    return ((epoch, augment(batch)) for epoch in count() for batch in batches(dataset, epoch))


def step_seconds(
    path: Path, begin: Mapping[str, Callable[[], tuple[Recipe, Feed]]], *, rounds: int
) -> dict[str, list[float]]:
    """Seconds of a step of each method on one thread, its batch and augmentation included; kept in a file."""
    if not path.is_file():
        say("acdc: what a step costs")
        torch.set_num_threads(1)
        found = time_in_rounds({name: _some_steps(*each()) for name, each in begin.items()}, rounds=rounds)
        write_json(path, {name: [each / STEPS_A_ROUND for each in times] for name, times in found.items()})
    stored: dict[str, list[float]] = json.loads(path.read_text(encoding="utf-8"))
    return stored


def score_patients(net: nn.Module, prepared: Path) -> Measured:
    """Dice of each validation patient: the mean over its frames of the mean over structures."""
    config, folder = acdc_config(), PreparedFolder(prepared)
    predictor = Predictor(net, patch_size=config.training.patch_size, overlap=0.25, sw_batch_size=8)
    frames: dict[str, list[float]] = {}
    for listed in folder.manifest.select(fold=int(FOLD)):
        case = folder.case(listed.case_id)
        found = predictor.prepared_probabilities(np.asarray(case.image), case_id=case.case_id).argmax(axis=0)
        label = np.asarray(case.label)
        dice = [dice_coefficient(found == value, label == value) for value in folder.manifest.structures.values()]
        frames.setdefault(listed.patient_id, []).append(float(np.nanmean(dice)))
    return {patient: fmean(scores) for patient, scores in frames.items()}


def claim_row_of(
    claim: Claim,
    runs: Mapping[str, Sequence[Run]],
    measured: Mapping[Run, Mapping[str, float]],
    *,
    budget: str = "equal time",
) -> dict[str, Any]:
    """A row whose pairs are patients, each the mean over seeds."""
    own, other = (mean_over_seeds([measured[run] for run in runs[name]]) for name in (claim.method, claim.control))
    if own.keys() != other.keys():
        raise ValueError(f"{claim.method} and {claim.control} were scored on different patients; use another --out")
    patients = sorted(own)
    values = [[scores[patient] for patient in patients] for scores in (own, other)]
    return claim_row(claim, *values, budget=budget, seeds=len(runs[claim.method]))


def mean_over_seeds(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each patient's mean; every seed has scored the same patients."""
    return {patient: fmean(each[patient] for each in scores) for patient in scores[0]}


def _some_steps(recipe: Recipe, feed: Feed) -> Callable[[], None]:
    recipe.net.train()
    return partial(_take_steps, recipe, feed)


def _take_steps(recipe: Recipe, feed: Feed) -> None:
    for _ in range(STEPS_A_ROUND):
        _, batch = next(feed)
        recipe.step(batch)
