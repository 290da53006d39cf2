"""Parts that all claims on ACDC share.

These are patients, network, training batches, cost of a step, and score of a patient.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.claims.claim_table import Claim, make_claim_row
from benchmarks.claims.equal_time import time_in_rounds
from benchmarks.claims.run_log import Measured, Run, print_progress
from benchmarks.claims.training import Base, Recipe
from data_prep.acdc import read_acdc
from uumamba.config import RunConfig, read_config
from uumamba.config.augmentation import build_augment
from uumamba.data.case import Case
from uumamba.data.dataset import PatchDataset, batches
from uumamba.data.prepared import PreparedFolder
from uumamba.inference import Predictor
from uumamba.metrics import dice_coefficient
from uumamba.pipelines.build import build_loss
from uumamba.pipelines.prepare import prepare
from uumamba.runtime.errors import UsageError
from uumamba.runtime.files import write_json
from uumamba.runtime.seeds import seed_everything
from uumamba.types import Batch

CONFIG = "acdc_uu_mamba"
SETTINGS = ("preprocess.spacing_mm=[null, 2.0, 2.0]", "training.patch_size=[96, 96]", "training.batch_size=4")
FOLD, TRAINING_PATIENTS = "0", 24
SECONDS, SEEDS = 300, 3
STEPS_A_ROUND, ROUNDS = 5, 5
WARMUP = 20

Feed = Iterator[tuple[int, Batch]]


@dataclass(frozen=True)
class Start:
    """Parts of a training before the method adds its own.

    Attributes:
        net: the configuration's network, initialised with the run's seed.
        loss: ``loss(logits, label)``; its parameters learn.
        base: function from parameters to an optimizer.
        engine: options that every optimizer of the family accepts.
    """

    net: nn.Module
    loss: nn.Module
    base: Base
    engine: Mapping[str, Any]


def parse_acdc_options(
    description: str | None, arguments: Sequence[str] | None, *, switches: Mapping[str, str] | None = None
) -> argparse.Namespace:
    """Parse the command line of a benchmark on ACDC.

    With ``--quick`` the folder ``out`` becomes ``out/quick``. ``switches`` are further flags with their help texts.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acdc", type=Path, required=True, help="the downloaded ACDC folder; only read")
    parser.add_argument("--out", type=Path, required=True, help="gets the prepared patients and a JSON line per run")
    parser.add_argument("--json", type=Path, help="file for the table")
    parser.add_argument("--workers", type=int, default=2, help="number of parallel runs, with one thread each")
    parser.add_argument("--quick", action="store_true", help="few patients and steps, in OUT/quick")
    for name, text in (switches or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    options = parser.parse_args(arguments)
    options.out = options.out / "quick" if options.quick else options.out
    return options


def read_acdc_config(settings: Sequence[str] = ()) -> RunConfig:
    """Read the configuration ``acdc_uu_mamba`` on a coarser grid, with further settings."""
    return read_config(CONFIG, [*SETTINGS, *settings])


def prepare_patients(
    raw: Path, out: Path, config: RunConfig, *, training: int | None, validation: int | None, workers: int = 2
) -> Path:
    """Prepare some of ACDC's training patients, with their folds kept.

    Folds are those among all 100 patients.
    """
    manifest, bad = read_acdc(raw)
    cases = manifest.select(split="training")
    chosen = {
        *select_over_groups([case for case in cases if case.fold != int(FOLD)], training),
        *select_over_groups([case for case in cases if case.fold == int(FOLD)], validation),
    }
    some = replace(manifest, cases=tuple(case for case in cases if case.patient_id in chosen))
    prepare(some, bad, recipe=config.preprocess.build(), out=out, workers=workers, raw=raw)
    return out


def select_over_groups(cases: Sequence[Case], count_wanted: int | None) -> list[str]:
    """Select patients from each diagnosis in turn, in order of ids.

    ``count_wanted`` None selects all patients.
    """
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


def make_start(config: RunConfig, prepared: Path, seed: int) -> Start:
    """Build the configuration's network, loss and base optimizer."""
    seed_everything(seed)
    net = config.build_net(classes=len(PreparedFolder(prepared).manifest.structures) + 1)
    clipped = {"max_grad_norm": config.optim.max_grad_norm}
    return Start(net, build_loss(config), config.optim.base.bind(), clipped)


def split_fold(prepared: Path) -> tuple[list[str], list[str]]:
    """List the ids of the fold's training and validation cases."""
    select, fold = PreparedFolder(prepared).manifest.select, int(FOLD)
    training, validation = select(split="training", without_fold=fold), select(split="training", fold=fold)
    return [case.case_id for case in training], [case.case_id for case in validation]


def make_feed(config: RunConfig, prepared: Path, seed: int, *, cases: Sequence[str] | None = None) -> Feed:
    """Yield augmented training batches without end.

    ``cases`` selects the cases, by default those of the training split; a repeated case is drawn more often.
    """
    folder = PreparedFolder(prepared)
    dataset = PatchDataset(
        folder,
        split_fold(prepared)[0] if cases is None else cases,
        patch_size=config.training.patch_size,
        batch_size=config.training.batch_size,
        batches_per_epoch=config.training.batches_per_epoch,
        foreground_fraction=config.training.foreground_fraction,
        seed=seed,
    )
    augment = build_augment(config.augment, patch_size=config.training.patch_size)
    return ((epoch, augment(batch)) for epoch in count() for batch in batches(dataset, epoch))


def measure_step_seconds(
    path: Path, begin: Mapping[str, Callable[[], tuple[Recipe, Feed]]], *, rounds: int
) -> dict[str, list[float]]:
    """Measure a step's seconds per method on one thread, or read them.

    Reading and augmenting the batch are included. The result is stored in a file.
    """
    if not path.is_file():
        print_progress("acdc: measure the cost of a step")
        torch.set_num_threads(1)
        found = time_in_rounds({name: partial(_take_steps, *each()) for name, each in begin.items()}, rounds=rounds)
        write_json(path, {name: [each / STEPS_A_ROUND for each in times] for name, times in found.items()})
    stored: dict[str, list[float]] = json.loads(path.read_text(encoding="utf-8"))
    return stored


def score_patients(net: nn.Module, prepared: Path) -> Measured:
    """Return the Dice of each validation patient.

    It is the mean over the patient's frames of the mean over structures.
    """
    config, folder = read_acdc_config(), PreparedFolder(prepared)
    predictor = Predictor(net, patch_size=config.training.patch_size, overlap=0.25, sw_batch_size=8)
    frames: dict[str, list[float]] = {}
    for listed in folder.manifest.select(fold=int(FOLD)):
        case = folder.case(listed.case_id)
        found = predictor.prepared_probabilities(np.asarray(case.image), case_id=case.case_id).argmax(axis=0)
        label = np.asarray(case.label)
        dice = [dice_coefficient(found == value, label == value) for value in folder.manifest.classes.values()]
        frames.setdefault(listed.patient_id, []).append(float(np.nanmean(dice)))
    return {patient: fmean(scores) for patient, scores in frames.items()}


def make_patient_row(
    claim: Claim,
    runs: Mapping[str, Sequence[Run]],
    measured: Mapping[Run, Mapping[str, float]],
    *,
    budget: str = "equal time",
) -> dict[str, Any]:
    """Make a row whose pairs are patients, averaged over seeds."""
    own, other = (average_over_seeds([measured[run] for run in runs[name]]) for name in (claim.method, claim.control))
    if own.keys() != other.keys():
        raise UsageError(
            "--out",
            got=f"different patients for {claim.method} and {claim.control}",
            expected="runs scored on the same patients",
            fix="use another folder",
        )
    patients = sorted(own)
    values = [[scores[patient] for patient in patients] for scores in (own, other)]
    return make_claim_row(claim, *values, budget=budget, seeds=len(runs[claim.method]))


def average_over_seeds(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average each patient's score over seeds.

    Every seed must have scored the same patients.
    """
    return {patient: fmean(each[patient] for each in scores) for patient in scores[0]}


def _take_steps(recipe: Recipe, feed: Feed) -> None:
    recipe.net.train()
    for _, batch in islice(feed, STEPS_A_ROUND):
        recipe.step(batch)
