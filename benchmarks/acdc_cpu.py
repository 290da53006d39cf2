"""ACDC on two CPU cores: Dice of three variants at equal cost.

Compared are U-Mamba with SAM, the control network, and the plain optimizer. Each variant is a complete ``uumamba run``
of ``acdc_cpu`` on fold 0 of the 100 training patients: raw scans to Dice on native grids. SAM makes two passes per
step, so it gets half the steps of plain AdamW, which is the configuration's own optimizer. Finished variants are read,
not run again, so that the table can grow one variant at a time.

    python -m benchmarks.acdc_cpu --raw ACDC/database --out runs/acdc_cpu --json benchmarks/results/acdc_cpu.json
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.acdc_scores import STRUCTURES
from benchmarks.result_file import describe_commit, is_compatible, write_result
from uumamba.config import read_config
from uumamba.runtime.files import write_json

if TYPE_CHECKING:
    from uumamba.pipelines.jobs import Job

CONFIG = "acdc_cpu"
SAM = (
    "optim={name: SAM, rho: 0.05, base: {name: AdamW, lr: 0.001, weight_decay: 0.01}, max_grad_norm: 12.0}",
    "training.epochs=45",
)
VARIANTS: dict[str, tuple[str, ...]] = {
    "UMambaBot, SAM": SAM,
    "ResEncUNet, SAM": (*SAM, "net.name=ResEncUNet"),
    "UMambaBot, AdamW, twice the steps": (),
}
RECORD = "measured.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the missing variants and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True, help="the downloaded ACDC folder")
    parser.add_argument("--out", type=Path, required=True, help="gets one folder per variant")
    parser.add_argument("--json", type=Path, help="file for the table")
    parser.add_argument("--only", action="append", choices=VARIANTS, help="run only this variant; repeatable")
    parser.add_argument("--quick", action="store_true", help="two epochs per variant in OUT/quick, as a test")
    options = parser.parse_args(arguments)
    quick = ("training.epochs=2",) if options.quick else ()
    measured, commits = {}, set()
    for name, overrides in VARIANTS.items():
        folder = options.out / ("quick" if options.quick else "") / name.replace(", ", "-").replace(" ", "_")
        finished = (folder / "summary.json").is_file()
        if not finished and options.only is not None and name not in options.only:
            continue
        if not finished:
            run_variant((*overrides, *quick), raw=options.raw, out=folder)
        require_same_configuration(folder, (*overrides, *quick))
        measured[name] = summarize_run(name, folder)
        commits.update(read_record(folder)["commits"])
        print(measured[name])
    if options.json is not None:
        about = (
            "Mean Dice over the 40 frames (ED and ES) of the 20 validation patients of fold 0, on their native grids, "
            "of one run each with seed 0. Minutes are those of training with its validation, and of the complete run "
            "from raw scans to report unless it was interrupted. The machine had other work at times, so minutes "
            "compare roughly. On ACDC differences of less than half a Dice point are noise."
        )
        write_result(
            options.json,
            list(measured.values()),
            title="ACDC on two CPU cores",
            about=about,
            configs=[(CONFIG, (*VARIANTS[name], *quick)) for name in measured],
            measured_at=", ".join(sorted(commits)),
        )


def run_variant(
    overrides: tuple[str, ...],
    *,
    raw: Path,
    out: Path,
    config: str = CONFIG,
    before_report: "Callable[[Path, Sequence[Job]], None]" = lambda out, jobs: None,
) -> None:
    """Run one variant from raw scans to report, or resume it.

    The commit is stored next to the run, and the minutes if the run was not interrupted.
    """
    from uumamba.pipelines.run import run

    in_one_go = not out.exists()
    commits = sorted({*read_record(out)["commits"], describe_commit()})
    write_json(out / RECORD, {"commits": commits, "minutes": None})
    begin = time.perf_counter()
    run(read_config(config, overrides), raw=raw, out=out, workers=2, say=print, before_report=before_report)
    if in_one_go:
        minutes = (time.perf_counter() - begin) / 60
        write_json(out / RECORD, {"commits": commits, "minutes": round(minutes, 1)})


def read_record(folder: Path) -> dict[str, Any]:
    """Read the commits and minutes that a run has stored.

    A run without a record has an unknown commit and no minutes.
    """
    if (folder / RECORD).is_file():
        stored: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return stored
    return {"commits": ["unknown"] if folder.exists() else [], "minutes": None}


def require_same_configuration(folder: Path, overrides: tuple[str, ...], *, config: str = CONFIG) -> None:
    """Exit if a finished run used another configuration than the current one."""
    stored = json.loads((folder / "run" / "fold_0" / "config.json").read_text(encoding="utf-8"))["run"]
    if not is_compatible(stored, read_config(config, overrides).as_json()):
        sys.exit(
            f"{folder}: got another configuration, expected the current {config}. Fix: move the folder and run again."
        )


def summarize_run(name: str, folder: Path) -> dict[str, Any]:
    """Return a run's mean Dice, from its scores, and its minutes."""
    from uumamba.evaluation import mean_dice_of, read_scores

    dice = mean_dice_of(row for row in read_scores(folder / "scores.csv") if row.structure in STRUCTURES).as_dict()
    log = (folder / "run" / "fold_0" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = sum(json.loads(line)["seconds"] for line in log)
    minutes = read_record(folder)["minutes"]
    return {
        "network, optimizer": name,
        "mean Dice": round(dice["dice"], 4),
        **{structure: round(dice[structure], 4) for structure in STRUCTURES if structure in dice},
        "training minutes": round(seconds / 60, 1),
        "minutes in all": "-" if minutes is None else minutes,
    }


if __name__ == "__main__":
    main()
