"""The README's table: Dice, minutes and hardware, next to nnU-Net's."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.result_file import ROOT

CARD = ROOT / "uumamba" / "models" / "acdc" / "CARD.md"
NOT_MEASURED = "not measured"
TIMES_ALONE = "-"
PEER = "nnU-Net"
NOTE = f"""Dice is the mean over RV, MYO and LV on the scans' own grids, or as stated. {PEER} was not trained here: its
prediction was timed with random weights, so only times compare. Minutes of training include validation.
"""
VALIDATION = "ACDC, 20 held-out patients"
_MEAN_DICE = re.compile(r"(\d+) patients \(ED and ES\): mean Dice (\d\.\d+)")
_MINUTES = re.compile(r"took (\d+\.\d+) minutes")

Row = dict[str, Any]


def make_front_rows(results: Mapping[str, Mapping[str, Any]], card: str) -> Iterator[Row]:
    """Yield the rows, of the results that exist.

    Args:
        results: results by the names of their files.
        card: text of the shipped model's card.
    """
    if found := _MEAN_DICE.search(card):
        yield make_row(
            "recipe of the shipped model `acdc`, trained without these patients", VALIDATION, dice=float(found[2])
        )
    for row in _rows_of(results, "acdc_cpu"):
        task = f"`acdc_cpu` trained: {row['network, optimizer']}"
        machine = results["acdc_cpu"]["machine"]
        yield make_row(task, VALIDATION, dice=row["mean Dice"], minutes=row["training minutes"], machine=machine)
    for row in _rows_of(results, "acdc_minutes"):
        measured = row["value"] != NOT_MEASURED
        machine = results["acdc_minutes"]["machine"] if measured else "one GPU"
        task = f"`acdc_2d` trained in {row['minutes']:g} minutes ({row['mean Dice of fold 0']})"
        yield make_row(
            task, VALIDATION, dice=row["value"], minutes=row["minutes"] if measured else None, machine=machine
        )
    for row in _rows_of(results, "demo")[:1]:
        minutes = _MINUTES.search(str(results["demo"].get("about")))
        task = f"`uumamba demo`, phantom to report: {row['method']}"
        yield make_row(
            task,
            "12 held-out phantoms",
            dice=row["mean Dice"],
            minutes=None if minutes is None else float(minutes[1]),
            machine=results["demo"]["machine"],
        )
    yield from _list_predictions(results)


def make_row(
    task: str,
    data: str,
    *,
    dice: float | str | None = None,
    minutes: float | None = None,
    peer_minutes: float | None = None,
    machine: str = NOT_MEASURED,
) -> Row:
    """Make one row; a number that does not exist is not measured."""
    found = {
        "mean Dice": dice,
        f"{PEER}'s Dice": None if dice != TIMES_ALONE else TIMES_ALONE,
        "minutes": minutes,
        f"{PEER}'s minutes": peer_minutes,
    }
    cells = {key: NOT_MEASURED if value is None else value for key, value in found.items()}
    return {"task": task, "data": data} | cells | {"hardware": machine}


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
            yield make_row(
                f"prediction, {mode}",
                f"ACDC, {row['shape']}",
                dice=TIMES_ALONE,
                minutes=row["median_s"] / 60,
                peer_minutes=peers[mode, row["shape"]] / 60,
                machine=results["predict"]["machine"],
            )


def _rows_of(results: Mapping[str, Mapping[str, Any]], name: str) -> list[Row]:
    return list(results[name]["rows"]) if name in results else []
