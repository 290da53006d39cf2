r"""Methods on hearts with little data, after training has converged.

    python -m benchmarks.claims.hearts --acdc ACDC/database --out runs/hearts --json benchmarks/results/hearts.json

This protocol was written before the first run.

**Data.** The 100 public training patients of ACDC, at 5 mm in plane. Folds 2 to 4 are for training (40 patients, of
each diagnosis in turn, or the first 10 of them), fold 1 is the inner validation, and fold 0 (20 patients) is the test.
The official test patients are not used.

**Network.** U-Mamba (Bot) or the same residual U-Net without Mamba, with 0.6 million parameters, patches of 40x40,
batches of 8, nnU-Net's augmentation without flips, AdamW and a cosine schedule (``hearts.yaml``). The aim was a plain
optimizer on its plateau within ten minutes of one core: with 1.5 times the steps the Dice of fold 1 should differ by
less than half a point (three seeds, 95 % interval). No setting that was tried gets there. From 6000 to 9000 steps the
protocol's own gains 0.7 points (-0.04 to 1.4). In single earlier runs (``hearts_pilots.jsonl``) 6 mm, smaller batches
and no augmentation gained 0.9 points or more from 1.5 times the steps, and half the width, a smaller patch and images
cut around the heart were worse than the protocol's setting at equal steps. Runs of 6000 steps are therefore near the
plateau, not on it; plain runs of twice as many, the controls at equal time, show what is missing.

**Tuning.** First the learning rate of the plain optimizer, then one number of each method, from four values each, by
the mean Dice of fold 1 after one run with 40 patients; the number of a method is chosen with a third of the steps. The
seed is used for nothing else but the plateau. All other numbers are the published ones.

**Runs.** Three other seeds. At equal steps every method makes the same number, half of it with 10 patients; at equal
time the plain optimizer makes twice as many as a method with two passes per step. A patient's score is the mean over
seeds and its frames; patients are the pairs, and intervals are Student's at 95 %.

**Primary contrast.** UU-Mamba (SAM, learned loss weights) against U-Mamba (plain optimizer, Dice + CE) with 40 patients
at equal time. All other contrasts are secondary; their p-values are adjusted together by Holm's method, and the
adjusted value decides the verdict. Beside Dice there are the calibration error, the gap between the Dice of training
and test patients, and the largest Hessian eigenvalue of each group of runs, in a second table.

Each finished run is a line of ``runs.jsonl`` in OUT and of a file beside the JSON table. A run in either file is not
repeated, so the queue continues on any machine. ``--only`` selects stages; their runs are tuned first.
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy import stats

from benchmarks.claims.acdc import prepare_patients
from benchmarks.claims.claim_table import make_claim_row, round_digits
from benchmarks.claims.heart_contrasts import MEAN_STYLE, STAGES, Contrast, list_contrasts, select_scores
from benchmarks.claims.heart_queue import BASE, Queue
from benchmarks.claims.heart_runs import CONFIG, perform
from benchmarks.claims.intervals import FAILS, HOLDS, UNDECIDED
from benchmarks.claims.run_log import Measured, Run, RunLog, copy_lines, find_kept_log
from benchmarks.claims.shifted_patients import prepare_styles
from benchmarks.result_file import write_result
from benchmarks.scan import print_rows

STEPS, SEEDS = 6000, (0, 1, 2)
LEVEL = 0.05


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare, run missing runs stage by stage, and write after each stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acdc", type=Path, required=True, help="the downloaded ACDC folder; only read")
    parser.add_argument("--out", type=Path, required=True, help="gets the prepared patients and a JSON line per run")
    parser.add_argument("--json", type=Path, help="file for the table; the runs and a second table go beside it")
    parser.add_argument("--workers", type=int, default=2, help="number of parallel runs, with one thread each")
    parser.add_argument("--only", action="append", choices=STAGES, help="a stage; repeatable; default: all stages")
    parser.add_argument("--quick", action="store_true", help="few steps and two seeds, in OUT/quick")
    options = parser.parse_args(arguments)
    out, config = options.out / "quick" if options.quick else options.out, BASE.read_config()
    prepared = prepare_patients(options.acdc, out / "prepared", config, training=None, validation=None)
    styles = prepare_styles(prepared, out / "styles", config)
    kept = find_kept_log(options.json)
    copy_lines(kept, out / "runs.jsonl")
    queue = Queue(
        RunLog(out),
        partial(perform, prepared=prepared, styles=styles),
        workers=options.workers,
        steps=20 if options.quick else STEPS,
        seeds=SEEDS[:2] if options.quick else SEEDS,
    )
    queue.tune_rate()
    found: list[Contrast] = []
    for stage in options.only or STAGES:
        of_stage = list_contrasts(queue, stage)
        runs = dict.fromkeys(run for each in of_stage for run in each.list_runs())
        queue.complete(sorted(runs, key=lambda run: run.seed))
        found += of_stage
        copy_lines(out / "runs.jsonl", kept)
        if options.json is not None:
            write_tables(options.json, queue, found)
    print_rows(make_rows(found, queue.log.measured))


def make_rows(found: Sequence[Contrast], measured: Mapping[Run, Measured]) -> list[dict[str, Any]]:
    """Make the table of contrasts, with Holm's verdicts for the secondary ones."""
    pairs = [each.pair(measured) for each in found]
    rows = [
        make_claim_row(each.claim, *pair, budget=each.budget, seeds=len(each.own.runs)) | {"p_holm": None}
        for each, pair in zip(found, pairs, strict=True)
    ]
    secondary = [index for index, each in enumerate(found) if not each.kind]
    p_values = adjust_by_holm([float(stats.ttest_rel(*pairs[index]).pvalue) for index in secondary])
    for index, p_value in zip(secondary, p_values, strict=True):
        is_claimed = rows[index]["difference"] > 0
        rows[index]["p_holm"] = float(f"{p_value:.2g}")
        rows[index]["verdict"] = UNDECIDED if not p_value < LEVEL else HOLDS if is_claimed else FAILS
    return rows


def make_levels(found: Sequence[Contrast], measured: Mapping[Run, Measured]) -> list[dict[str, Any]]:
    """Make the table of each group of runs, with means over seeds."""
    groups = dict.fromkeys(side.runs for each in found if not each.kind for side in (each.own, each.control))
    return [_make_level(runs, [measured[run] for run in runs]) for runs in groups]


def _make_level(runs: Sequence[Run], measured: Sequence[Measured]) -> dict[str, Any]:
    dice = [fmean(each["dice"].values()) for each in measured]
    styles = [fmean(select_scores(each, MEAN_STYLE).values()) for each in measured if "styles" in each]
    values = {
        "dice": fmean(dice),
        "sd_over_seeds": stdev(dice),
        "training_test_gap": fmean(fmean(each["training dice"].values()) for each in measured) - fmean(dice),
        "calibration_error": fmean(fmean(each["ece"].values()) for each in measured),
        "largest_eigenvalue": fmean(each["eigenvalue"] for each in measured),
        "core_minutes": fmean(each["training_seconds"] for each in measured) / 60,
    }
    first = runs[0]
    rounded = {name: round_digits(value) for name, value in values.items()}
    style = {"dice_mean_of_styles": round_digits(fmean(styles)) if styles else "-"}
    value = {"value": "-" if first.value is None else first.value}
    return {"method": first.method} | value | {"setting": first.setting, "steps": first.steps} | rounded | style


def adjust_by_holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down method.

    Example:
        >>> adjust_by_holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = round(largest, 12)
    return adjusted


def write_tables(path: Path, queue: Queue, found: Sequence[Contrast]) -> None:
    """Write the tables of the finished stages."""
    hours = sum(each["training_seconds"] for each in queue.log.measured.values()) / 3600
    tuned = ", ".join(f"{name} {value:g}" for name, value in queue.values.items() if value is not None)
    about = (
        f"ACDC at 5 mm, {queue.steps} steps, {len(queue.seeds)} seeds, Dice of RV, MYO and LV of the 20 patients of "
        f"fold 0 on the prepared grid, paired by patient; {hours:.1f} core-hours of training so far. Tuned on fold 1: "
        f"learning rate {queue.rate:g}{', ' if tuned else ''}{tuned}."
    )
    holm = " p holm is adjusted over all rows except those of the plateau and the primary one (UU-Mamba, equal time)."
    write = partial(write_result, configs=[(CONFIG, ())], measured_at=", ".join(sorted(queue.log.commits)))
    write(path, make_rows(found, queue.log.measured), title="Hearts at convergence", about=about + holm)
    if levels := make_levels(found, queue.log.measured):
        title = "Hearts at convergence, each group of runs"
        write(path.with_name(f"{path.stem}_levels.json"), levels, title=title, about=about)


if __name__ == "__main__":
    main()
