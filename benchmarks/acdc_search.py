r"""Search for the recipe of ``acdc_best`` by short runs on inner folds.

    python -m benchmarks.acdc_search --acdc ACDC/database --out runs/search --json benchmarks/results/acdc_search.json

The 20 patients of fold 0 are left out. Every trial trains on folds 2 to 4 and is scored on the 20 patients of fold 1,
on their native grids: mean Dice, HD95 of MYO and LV, and the error of the LV's ejection fraction. All trials of a step
get the same processor time: a trial's cost per step is measured first, and the number of epochs follows. The search is
greedy: a step changes one group of settings, and its best candidate is kept if its Dice is higher (or its HD95 lower by
a tenth at equal Dice within 0.1 points). Larger networks need more time before they gain, so width comes last, with
twice as much for each candidate and for the kept settings. A heart-centred second stage is tried with images cut
around the label of each frame: no network that finds the heart can help the second one more, so this row is a bound of
its gain and is never kept. The optimizer is not part of the search; `benchmarks.claims.hearts` decides that. A finished
trial is a line of ``trials.jsonl`` in OUT and of a file beside the JSON table; it is not repeated.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from time import process_time
from typing import Any

import torch

from benchmarks.acdc_scores import summarize_scores
from benchmarks.claims.run_log import copy_lines, print_progress
from benchmarks.heart_crops import cut_around_hearts
from benchmarks.result_file import describe_commit, hash_config, write_result
from benchmarks.scan import print_rows
from data_prep.acdc import read_acdc
from uumamba.config import RunConfig, read_config
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines.build import build_trainer
from uumamba.pipelines.evaluate import evaluate_folder
from uumamba.pipelines.jobs import list_jobs
from uumamba.pipelines.predict import predict
from uumamba.pipelines.prepare import prepare
from uumamba.pipelines.train import train
from uumamba.runtime.files import write_json
from uumamba.runtime.text_files import load_json

CONFIG = "acdc_uu_mamba"
PLAIN = "optim={name: Plain, base: {name: AdamW, lr: 0.001, weight_decay: 0.01}, max_grad_norm: 12.0}"
BASE = (PLAIN, "training.validate_every=1000", "schedule={name: cosine, warmup_epochs: 1}")
QUICK = (
    "net.features=[4, 8, 8, 8, 8]",
    "training.batches_per_epoch=2",
    "training.batch_size=1",
    "inference.mirror=false",
    "inference.overlap=0",
)
LEFT_OUT, INNER_FOLD = 0, 1
MINUTES, TIMED_STEPS = 6.0, 12
LONGER = 2.0
HEART_CROPS, MARGIN_MM = "images cut around the heart", 20.0
EQUAL_DICE, LOWER_HD95 = 0.001, 0.9


@dataclass(frozen=True)
class Step:
    """One group of settings.

    Attributes:
        name: name of the group.
        candidates: settings by the candidate's name, in addition to those that were kept.
        longer: factor of the minutes per training; if it is not 1, the kept settings are trained again.
        is_bound: True if candidates use what a user does not have, so that none can be kept.
    """

    name: str
    candidates: Mapping[str, tuple[str, ...]]
    longer: float = 1.0
    is_bound: bool = False


def list_steps() -> list[Step]:
    """List the steps in order."""
    return [
        Step("learning rate", {f"{rate:g}": (f"optim.base.lr={rate}",) for rate in (0.002, 0.004)}),
        Step(
            "resolution and patch",
            {
                "1.25 mm, 160": _resolution(1.25, 160),
                "1.5 mm, 160": _resolution(1.5, 160),
                "1.75 mm, 112": _resolution(1.75, 112),
            },
        ),
        Step("batch", {f"{size}": (f"training.batch_size={size}",) for size in (4, 16)}),
        Step("schedule", {"poly": ("schedule={name: poly, warmup_epochs: 1}",)}),
        Step(
            "loss",
            {
                "Dice + CE over the batch": ("loss={name: dice_cross_entropy}",),
                "Dice + CE per sample": ("loss={name: dice_cross_entropy, batch_dice: false}",),
            },
        ),
        Step(
            "augmentation",
            {
                "rotation and scaling in half": ("augment.rotation_probability=0.5", "augment.scale_probability=0.5"),
                "no mirror": ("augment.mirror_axes=[]", "inference.mirror=false"),
            },
        ),
        Step("moving average", {"none": ("training.ema_decay=null",)}),
        Step("sampling", {"RV twice": ("training.sampling.class_weights={RV: 2.0, MYO: 1.0, LV: 1.0}",)}),
        Step("neighbouring slices", {"1": ("training.neighbour_slices=1",)}),
        Step("averaging over flips", {"off": ("inference.mirror=false",)}),
        Step(
            "heart-centred second stage",
            {"with the label's place": (HEART_CROPS, "training.patch_size=[96, 96]")},
            is_bound=True,
        ),
        Step(
            "width",
            {
                "24 to 320": ("net.features=[24, 48, 96, 192, 320]",),
                "32 to 320": ("net.features=[32, 64, 128, 256, 320]",),
            },
            longer=LONGER,
        ),
    ]


def _resolution(spacing_mm: float, patch: int) -> tuple[str, ...]:
    return (f"preprocess.spacing_mm=[null, {spacing_mm}, {spacing_mm}]", f"training.patch_size=[{patch}, {patch}]")


def main(given: Sequence[str] | None = None) -> int:
    """Run the missing trials, and write the table after each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acdc", type=Path, required=True, help="the downloaded ACDC folder; only read")
    parser.add_argument("--out", type=Path, required=True, help="folder for prepared cases and trials")
    parser.add_argument("--json", type=Path, help="file for the table; the trials go beside it")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="minutes of one core per training")
    parser.add_argument("--quick", action="store_true", help="a second per training, three steps, in OUT/quick")
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    out = options.out / "quick" if options.quick else options.out
    log = out / "trials.jsonl"
    kept = None if options.json is None else options.json.with_name(f"{options.json.stem}_trials.jsonl")
    out.mkdir(parents=True, exist_ok=True)
    copy_lines(kept, log)
    trials = Trials(options.acdc, out, minutes=1 / 60 if options.quick else options.minutes)
    settings = (*BASE, *QUICK) if options.quick else BASE
    rows = [{"step": "start", "candidate": "acdc_cpu, Plain, cosine"} | trials.score(settings) | {"kept": True}]
    steps = list_steps()
    for step in (steps[0], *steps[-2:]) if options.quick else steps:
        if step.longer != 1:
            name = f"kept so far, {step.longer:g} times the minutes"
            rows.append({"step": step.name, "candidate": name} | trials.score(settings, step.longer) | {"kept": True})
        found = {name: trials.score((*settings, *extra), step.longer) for name, extra in step.candidates.items()}
        best = None if step.is_bound else find_best(find_kept_row(rows), found)
        settings = (*settings, *step.candidates[best]) if best else settings
        rows += [
            {"step": step.name, "candidate": name} | scores | {"kept": name == best} for name, scores in found.items()
        ]
        copy_lines(log, kept)
        if options.json is not None:
            write_table(options.json, rows, settings, options.minutes)
    print_rows(rows)
    print("settings:", *settings)
    return 0


def find_kept_row(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the last row that was kept."""
    return next(row for row in reversed(rows) if row["kept"])


def find_best(current: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the name of the candidate to keep, or None.

    Example:
        >>> current = {"dice": 0.880, "hd95_mm": 10.0}
        >>> find_best(current, {"a": {"dice": 0.884, "hd95_mm": 12.0}, "b": {"dice": 0.882, "hd95_mm": 3.0}})
        'a'
        >>> find_best(current, {"b": {"dice": 0.8796, "hd95_mm": 8.0}})
        'b'
    """
    name = max(found, key=lambda each: float(found[each]["dice"]))
    best = found[name]
    gain = best["dice"] - current["dice"]
    own, before = (math.inf if each["hd95_mm"] is None else each["hd95_mm"] for each in (best, current))
    is_smoother = abs(gain) <= EQUAL_DICE and own <= LOWER_HD95 * before and own < before
    return name if gain > EQUAL_DICE or is_smoother else None


class Trials:
    """Finished and new trials of a folder.

    Args:
        raw: ACDC as it was downloaded.
        out: folder for prepared cases, runs and ``trials.jsonl``.
        minutes: minutes of one core per training.
    """

    def __init__(self, raw: Path, out: Path, *, minutes: float) -> None:
        self.raw, self.out, self.minutes = raw, out, minutes
        self.log = out / "trials.jsonl"
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.is_file() else []
        self.scores = {(tuple(each["settings"]), each["minutes"]): each["scores"] for each in map(json.loads, lines)}

    def score(self, settings: tuple[str, ...], longer: float = 1.0) -> dict[str, Any]:
        """Return the scores of settings, after a training if necessary."""
        minutes = longer * self.minutes
        if (settings, minutes) not in self.scores:
            config = read_config(CONFIG, [each for each in settings if each != HEART_CROPS])
            folder = self._prepare(config, crop=HEART_CROPS in settings)
            run = self.out / "runs" / f"{_name_training(config)}_{folder.path.name}_{minutes:g}min"
            began = process_time()
            if not (run / "summary.json").is_file():
                config = _set_epochs(config, self._plan_epochs(run, config, folder, minutes))
                train(config, data=folder.path, out=run, fold=str(INNER_FOLD), resume=True, force=True, progress=False)
            used = (process_time() - began) / 60
            scores = _score_run(run, folder, settings) | {"core_minutes": round(used, 1)}
            line = {"settings": settings, "minutes": minutes, "scores": scores, "commit": describe_commit()}
            with self.log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
            self.scores[settings, minutes] = scores
            print_progress(f"search: {settings[-1]}: {scores}")
        return dict(self.scores[settings, minutes])

    def _prepare(self, config: RunConfig, *, crop: bool) -> PreparedFolder:
        """Prepare all patients but those of the fold that is left out."""
        raw = cut_around_hearts(self.raw, self.out / "crops", margin_mm=MARGIN_MM) if crop else self.raw
        manifest, bad = read_acdc(raw)
        cases = tuple(case for case in manifest.select(split="training") if case.fold != LEFT_OUT)
        recipe = config.preprocess.build()
        out = self.out / f"{'crops' if crop else 'prepared'}_{recipe.spacing_mm[-1]:g}mm"
        prepare(replace(manifest, cases=cases), bad, recipe=recipe, out=out, workers=1, raw=raw, progress=False)
        return PreparedFolder(out)

    def _plan_epochs(self, run: Path, config: RunConfig, folder: PreparedFolder, minutes: float) -> int:
        """Return a training's epochs.

        They are counted once, so that an interrupted training ends where it would have ended without the interruption.
        """
        kept = run.with_name(f"{run.name}.epochs.json")
        if not kept.is_file():
            write_json(kept, self._count_epochs(config, folder, minutes))
        return int(load_json(kept))

    def _count_epochs(self, config: RunConfig, folder: PreparedFolder, minutes: float) -> int:
        """Count the epochs in the minutes, by timing a few steps."""
        [job] = list_jobs(config, folder, fold=str(INNER_FOLD), out=self.out / "timed")
        trainer = build_trainer(job, folder, run_dir=None, device="cpu")
        trainer.net.train()
        with trainer.prefetcher.load(trainer.prefetcher.batches(0)) as batches:
            trainer.step.take(next(batches))  # the first step loads libraries
            began, steps = process_time(), 0
            for batch in islice(batches, TIMED_STEPS):
                trainer.step.take(batch)
                steps += 1
        seconds = (process_time() - began) / steps
        epochs = round(60 * minutes / seconds / config.training.batches_per_epoch)
        return max(2, epochs)  # one of them is the warm-up


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], settings: Sequence[str], minutes: float) -> None:
    """Write the table of gains."""
    about = (
        f"{CONFIG} on folds 2 to 4 of ACDC's 100 training patients, scored on the native grids of the 20 patients of "
        f"fold 1; fold 0 is left out. About {minutes:g} minutes of one core per training, {LONGER:g} times as many for "
        "the width, one seed; a kept row is the start of the next step. Differences below half a point of Dice are "
        "noise."
    )
    write_result(path, rows, title="Search for the recipe of acdc_best", about=about, configs=[(CONFIG, settings)])


def _name_training(config: RunConfig) -> str:
    """Name the folder of a training by everything but the prediction's settings."""
    stored = config.as_json()
    del stored["inference"]
    return hash_config(stored)[:12]


def _set_epochs(config: RunConfig, epochs: int) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update={"epochs": epochs})})


def _score_run(run: Path, folder: PreparedFolder, settings: Sequence[str]) -> dict[str, float | None]:
    """Predict and score the inner fold on native grids."""
    cases, mirror = [folder.path], "inference.mirror=false" not in settings
    predict(run, cases, out=run / "maps", split="training", case_fold=INNER_FOLD, mirror=mirror, progress=False)
    scores = evaluate_folder(run / "maps", folder.path, run / "scores", split="training", fold=INNER_FOLD)
    found = summarize_scores(scores.rows)
    distances = [each for name in ("MYO", "LV") if (each := found[f"hd95_mm_{name}"]) is not None]
    return found | {"hd95_mm": round(fmean(distances), 3) if len(distances) == 2 else None}


if __name__ == "__main__":
    sys.exit(main())
