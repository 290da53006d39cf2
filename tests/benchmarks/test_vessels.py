"""Tests of the table of the vessel phantoms; nothing is trained."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.result_file import RESULTS, read_result
from benchmarks.vessels import find_broken_claims, summarize_run
from uumamba.evaluation.scores import TREES_NAME, ScoreRow, write_scores
from uumamba.runtime.files import write_json


def make_score(case_id: str, structure: str, dice: float, cl_dice: float = 0.5, length_error: float = 1.0) -> ScoreRow:
    known: dict[str, Any] = dict.fromkeys(("hd95_mm", "nsd", "volume_ml", "label_volume_ml", "assd_mm"), 1.0)
    known |= {f"betti{degree}_error": 1 for degree in range(3)} | {"cl_dice": cl_dice, "length_error": length_error}
    return ScoreRow(case_id, case_id, None, structure, dice, group=None, **known)


@pytest.mark.parametrize(
    ("rows", "trees", "swapped", "expected"),
    [
        (
            [("a", "coronary", 0.8, 0.9, -0.25), ("b", "coronary", 0.6, 0.7, 0.75)],
            [],
            [],
            {"mean Dice": 0.7, "tree clDice": 0.8, "parts wrong": 1.0, "cases": 2, "tree length error": 0.5},
        ),
        (
            [("a", "RenalR", 0.5), ("a", "Zone5", 0.9)],
            [("a", "whole tree", 0.95, 1.0)],
            ["a: RenalR"],
            {"mean Dice": 0.7, "lowest structure": 0.5, "tree clDice": 1.0},
        ),
    ],
    ids=["one structure is its own tree", "several structures form one tree"],
)
def test_a_row_has_means_of_scores_and_trees_with_absolute_length_errors(
    tmp_path: Path, rows: list[Any], trees: list[Any], swapped: list[str], expected: dict[str, float]
) -> None:
    write_scores(tmp_path / "scores.csv", [make_score(*row) for row in rows])
    if trees:
        write_scores(tmp_path / TREES_NAME, [make_score(*row) for row in trees])
    write_json(tmp_path / "summary.json", {"sides": {"n_checked": 2, "swapped": swapped}})
    write_json(tmp_path / "measured.json", {"commits": ["abc"], "minutes": 12.5})
    row = summarize_run("net", tmp_path)
    assert row | expected | {"sides swapped": len(swapped), "minutes": 12.5} == row
    assert json.dumps(row)


@pytest.mark.parametrize("phantom", ["coronary", "aorta"])
def test_the_published_rows_show_the_claims(phantom: str) -> None:
    assert not list(find_broken_claims(phantom, read_result(RESULTS / f"{phantom}_phantom.json")["rows"]))
