"""``summary.json`` of a run: the validation Dice of every fold and seed, and how it spreads."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from uumamba.evaluation.spread import Spread, spread
from uumamba.evaluation.tables import spread_table
from uumamba.pipelines.run_layout import FoldFolder, fold_folders
from uumamba.runtime.files import write_json
from uumamba.training.run_log import RunLog

SUMMARY_NAME = "summary.json"
RULE = (
    "Each training's last validation, that of its final weights, on the prepared grid; standard deviations are those "
    "of a sample."
)


def write_run_summary(run: Path) -> None:
    """Write ``summary.json`` from what the folds have logged; nothing where none was validated."""
    trainings = validated_trainings(run)
    if trainings:
        spreads = spread_of(trainings)
        stored = {"rule": RULE, "validation_dice": {name: found.as_dict() for name, found in spreads.items()}}
        write_json(run / SUMMARY_NAME, stored | {"trainings": trainings})


def print_run_summary(run: Path) -> None:
    """Print the table of a run with more than one training."""
    trainings = validated_trainings(run)
    if len(trainings) > 1:
        Console().print(spread_table(spread_of(trainings)))


def validated_trainings(run: Path) -> list[dict[str, Any]]:
    """Seed, fold, epochs done and the last validation's Dice of each training of a run that was validated."""
    found = ((folder, RunLog(folder.path / "metrics.jsonl").rows()) for folder in fold_folders(run))
    return [_training(folder, rows) for folder, rows in found if _last_dice(rows)]


def spread_of(trainings: Sequence[Mapping[str, Any]]) -> dict[str, Spread]:
    """The spread of the mean Dice and of each structure's, by name."""
    names = dict.fromkeys(name for training in trainings for name in training["dice"])
    return {
        name: spread({(each["seed"], each["fold"]): each["dice"][name] for each in trainings if name in each["dice"]})
        for name in names
    }


def _training(folder: FoldFolder, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"seed": _seed_of(folder), "fold": folder.fold, "epochs": rows[-1]["epoch"] + 1, "dice": _last_dice(rows)}


def _last_dice(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """``{"mean": ..., "RV": ...}`` of the last row that has them."""
    validated = [row for row in rows if row.get("dice") is not None]
    if not validated:
        return {}
    dice = {"mean": validated[-1]["dice"]} | {
        key.removeprefix("dice_"): value for key, value in validated[-1].items() if key.startswith("dice_")
    }
    return {name: value for name, value in dice.items() if value is not None and math.isfinite(value)}


def _seed_of(folder: FoldFolder) -> int:
    if folder.seed is not None:
        return folder.seed
    try:
        return int(json.loads((folder.path / "config.json").read_text(encoding="utf-8"))["run"]["seed"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
