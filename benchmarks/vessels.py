"""Coronary and aortic phantoms: the network, a control and two baselines.

The control is the same network without Mamba; the baselines use little knowledge of the images. Each variant is a
complete ``uumamba run`` of ``imagecas_cpu`` or ``aorta_cpu`` on a phantom in the data set's own layout, which is
written first. Finished variants are read, not run again. The exit code is 1 if a claim of the project does not hold.

    python -m benchmarks.vessels coronary --out runs/coronary --json benchmarks/results/coronary_phantom.json
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.acdc_cpu import read_record, require_same_configuration, run_variant
from benchmarks.result_file import write_result

if TYPE_CHECKING:
    from uumamba.pipelines.jobs import Job

VARIANTS: dict[str, tuple[str, ...]] = {"UMambaBot, AdamW": (), "ResEncUNet, AdamW": ("net.name=ResEncUNet",)}
LEAST = {"coronary": {"mean Dice": 0.80, "tree clDice": 0.85}, "aorta": {"mean Dice": 0.65}}
MOST = {"coronary": {"minutes": 20}, "aorta": {"minutes": 45, "sides swapped": 0}}
GIVEN_AWAY = {"coronary": 0.6, "aorta": 0.4}
"""Upper limit of the baselines' mean Dice; above it the phantom would be too easy."""
QUICK = ("training.epochs=2", "training.batches_per_epoch=4")


@dataclass(frozen=True)
class Phantom:
    """Phantom with its configuration and the title of its table."""

    config: str
    title: str
    cases: int
    write: Callable[..., Path]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the missing variants on the phantom and write the table.

    The exit code is 1 if a claim does not hold.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phantom", choices=("coronary", "aorta"))
    parser.add_argument("--out", type=Path, required=True, help="gets the phantom and one folder per variant")
    parser.add_argument("--json", type=Path, help="file for the table")
    parser.add_argument("--only", action="append", choices=VARIANTS, help="run only this variant; repeatable")
    parser.add_argument("--quick", action="store_true", help="ten cases and few steps, as a test")
    options = parser.parse_args(arguments)
    phantom, quick = _get_phantom(options.phantom), QUICK if options.quick else ()
    raw = options.out / "raw"
    phantom.write(raw, cases=10 if options.quick else phantom.cases, workers=2)
    rows: list[dict[str, Any]] = []
    ran, commits = [], set()
    for name, overrides in VARIANTS.items():
        folder = options.out / name.replace(", ", "-").replace(" ", "_")
        if not (folder / "summary.json").is_file():
            if options.only is not None and name not in options.only:
                continue
            baselines = {} if rows else {"before_report": _write_baselines}  # they do not depend on the network
            run_variant((*overrides, *quick), raw=raw, out=folder, config=phantom.config, **baselines)
        require_same_configuration(folder, (*overrides, *quick), config=phantom.config)
        rows.append(summarize_run(name, folder))
        ran.append((phantom.config, (*overrides, *quick)))
        commits.update(read_record(folder)["commits"])
        print(rows[-1])
    rows += _read_baselines(options.out, like=rows[0])
    if options.json is not None:
        held_out = int(rows[0]["cases"])
        about = (
            f"A phantom of {phantom.cases} cases in the data set's own layout. The {held_out} cases of fold 0 are "
            "scored on their native grids, in one run each with seed 0. Minutes are from raw scans to report; an "
            "interrupted run has none. Trees are the union of all structures. Their length error is the mean "
            "absolute difference in centreline length over cases, relative to the reference length. The baselines "
            "were fitted by grid search on the other cases."
        )
        write_result(
            options.json,
            rows,
            title=phantom.title,
            about=about,
            configs=ran,
            measured_at=", ".join(sorted(commits)),
        )
    broken = [] if options.quick else list(find_broken_claims(options.phantom, rows))
    print(*broken, sep="\n", end="\n" if broken else "", file=sys.stderr)
    return 1 if broken else 0


def find_broken_claims(phantom: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a message per claim that the rows contradict.

    Claims are about the preset, and about the difficulty of the phantom.
    """
    ours, *others = rows
    for column, least in LEAST[phantom].items():
        if ours[column] is None or ours[column] < least:
            yield f"{ours['method']}: {column} is {ours[column]}, claimed at least {least:g}"
    for column, most in MOST[phantom].items():
        if ours[column] is not None and ours[column] > most:
            yield f"{ours['method']}: {column} is {ours[column]}, claimed at most {most:g}"
    for row in others:
        if row["tree clDice"] is None and row["mean Dice"] >= GIVEN_AWAY[phantom]:  # a baseline has only Dice
            yield f"{row['method']}: mean Dice is {row['mean Dice']}, claimed below {GIVEN_AWAY[phantom]:g}"


def summarize_run(name: str, folder: Path) -> dict[str, Any]:
    """Return a run's means over validation cases and its minutes.

    The means come from ``scores.csv`` and ``trees.csv``.
    """
    from uumamba.evaluation import mean_dice_of, read_scores
    from uumamba.evaluation.means import moments
    from uumamba.evaluation.scores import TREES_NAME

    scores = read_scores(folder / "scores.csv")
    trees = read_scores(folder / TREES_NAME) if (folder / TREES_NAME).is_file() else scores
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    dice = mean_dice_of(scores)
    measured = ("cl_dice", "length_error", "betti0_error")
    cl_dice, length, parts = (
        moments(abs(value) for row in trees if (value := getattr(row, column)) is not None).mean for column in measured
    )
    return {
        "method": name,
        "mean Dice": round(dice.foreground or 0.0, 4),
        "lowest structure": round(min(value for value in dice.structures.values() if value is not None), 4),
        "tree clDice": _round_or_none(cl_dice),
        "tree length error": _round_or_none(length),
        "parts wrong": _round_or_none(parts),
        "sides swapped": len((summary.get("sides") or {"swapped": []})["swapped"]),
        "cases": len({row.case_id for row in scores}),
        "minutes": read_record(folder)["minutes"],
    }


def _get_phantom(name: str) -> Phantom:
    if name == "coronary":
        from data_prep.phantoms.coronary.coronary_phantom import write_coronary_phantom

        return Phantom("imagecas_cpu", "Coronary phantom on two CPU cores", 40, write_coronary_phantom)
    from data_prep.phantoms.aorta.aorta_phantom import write_aorta_phantom

    return Phantom("aorta_cpu", "Aortic phantom in 23 zones on two CPU cores", 30, write_aorta_phantom)


def _write_baselines(out: Path, jobs: "Sequence[Job]") -> None:
    from uumamba.pipelines.demo import write_baselines

    write_baselines(out, jobs, say=print)


def _read_baselines(out: Path, *, like: dict[str, Any]) -> list[dict[str, Any]]:
    """Read the rows of the baselines, which have Dice only."""
    found = sorted(out.glob("*/baselines.json"))
    measured = json.loads(found[0].read_text(encoding="utf-8")) if found else {}
    return [
        dict.fromkeys(like)
        | {
            "method": name,
            "mean Dice": round(scores.pop("dice"), 4),
            "lowest structure": round(min(each for each in scores.values() if not math.isnan(each)), 4),
            "cases": like["cases"],
        }
        for name, scores in measured.items()
    ]


def _round_or_none(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


if __name__ == "__main__":
    sys.exit(main())
