"""The README's table: Dice and minutes, next to nnU-Net's."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.result_file import ROOT

CARD = ROOT / "uumamba" / "models" / "acdc" / "CARD.md"
PEER = "nnU-Net"
NOT_MEASURED, NOTHING = "not measured", "-"
HELD_OUT = "20 held-out patients of ACDC"
_MEAN_DICE = re.compile(r"(\d+) patients \(ED and ES\): mean Dice (\d\.\d+)")

Row = dict[str, Any]


def make_front_rows(results: Mapping[str, Mapping[str, Any]], card: str) -> Iterator[Row]:
    """Yield the rows, of the results that exist.

    Args:
        results: results by the names of their files.
        card: text of the shipped model's card.
    """
    if found := _MEAN_DICE.search(card):
        yield _make_row(f"the shipped model's recipe, {HELD_OUT}", dice=float(found[2]))
    if trained := _rows_of(results, "acdc_cpu"):
        best = max(trained, key=lambda row: float(row["mean Dice"]))
        task = f"training of `acdc_cpu` ({best['network, optimizer']}), {HELD_OUT}"
        yield _make_row(task, dice=best["mean Dice"], minutes=best["training minutes"])
    yield from _list_predictions(results)


def describe_front(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the note below the table."""
    machines = sorted({results[name]["machine"] for name in ("acdc_cpu", "predict") if name in results})
    return (
        f"Measured on {' and on '.join(machines) or NOTHING}. Dice is the mean over RV, MYO and LV on the scans' own "
        f"grids. {PEER} has not been trained here; its prediction was timed with random weights in the same run.\n"
    )


def read_card(path: Path = CARD) -> str:
    """Read the shipped model's card; empty if there is none."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _list_predictions(results: Mapping[str, Mapping[str, Any]]) -> Iterator[Row]:
    """Yield the times of prediction that nnU-Net was measured for, too."""
    rows = _rows_of(results, "predict")
    peers = {(row["name"].partition(", ")[2], row["shape"]): row["median_s"] for row in rows if PEER in row["name"]}
    for row in rows:
        name, _, mode = row["name"].partition(", ")
        if name != PEER and (mode, row["shape"]) in peers:
            peer = peers[mode, row["shape"]] / 60
            task = f"prediction of {row['shape']} of ACDC, {mode}"
            yield _make_row(task, dice=NOTHING, minutes=row["median_s"] / 60, peer_dice=NOTHING, peer_minutes=peer)


def _make_row(
    task: str,
    *,
    dice: float | str,
    minutes: float | None = None,
    peer_dice: str = NOT_MEASURED,
    peer_minutes: float | None = None,
) -> Row:
    """Make one row; a number that does not exist is not measured."""
    cells = {
        "mean Dice": dice,
        "minutes": minutes,
        f"{PEER}'s Dice": peer_dice,
        f"{PEER}'s minutes": peer_minutes,
    }
    return {"task": task} | {key: NOT_MEASURED if value is None else value for key, value in cells.items()}


def _rows_of(results: Mapping[str, Mapping[str, Any]], name: str) -> list[Row]:
    return list(results[name]["rows"]) if name in results else []
