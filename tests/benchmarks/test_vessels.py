"""The table of the phantoms tells what their scores say. Nothing here trains."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.result_file import RESULTS, read_result
from benchmarks.vessels import broken_claims, row_of
from uumamba.evaluation.scores import TREES_NAME, ScoreRow, write_scores
from uumamba.runtime.files import write_json


def score(case_id: str, structure: str, dice: float, cl_dice: float = 0.5) -> ScoreRow:
    known = dict.fromkeys(("hd95_mm", "nsd", "volume_ml", "label_volume_ml", "assd_mm", "length_error"), 1.0)
    betti = {f"betti{degree}_error": 1 for degree in range(3)}
    return ScoreRow(case_id, case_id, None, structure, dice, group=None, cl_dice=cl_dice, **known, **betti)


def finished(folder: Path, rows: list[ScoreRow], *, swapped: list[str]) -> Path:
    write_scores(folder / "scores.csv", rows)
    write_json(folder / "summary.json", {"sides": {"n_checked": 2, "swapped": swapped}})
    write_json(folder / "measured.json", {"commits": ["abc"], "minutes": 12.5})
    return folder


def test_one_structure_is_its_own_tree(tmp_path: Path) -> None:
    rows = [score("a", "coronary", 0.8, cl_dice=0.9), score("b", "coronary", 0.6, cl_dice=0.7)]
    row = row_of("net", finished(tmp_path, rows, swapped=[]))
    assert (row["mean Dice"], row["tree clDice"], row["parts wrong"], row["cases"]) == (0.7, 0.8, 1.0, 2)
    assert (row["sides swapped"], row["minutes"]) == (0, 12.5)


def test_several_structures_are_one_tree_and_the_lowest_is_told(tmp_path: Path) -> None:
    folder = finished(tmp_path, [score("a", "RenalR", 0.5), score("a", "Zone5", 0.9)], swapped=["a: RenalR"])
    write_scores(folder / TREES_NAME, [score("a", "whole tree", 0.95, cl_dice=1.0)])
    row = row_of("net", folder)
    assert (row["mean Dice"], row["lowest structure"], row["tree clDice"]) == (0.7, 0.5, 1.0)
    assert row["sides swapped"] == 1
    assert json.dumps(row)


def test_errors_of_length_in_both_directions_do_not_cancel(tmp_path: Path) -> None:
    rows = [score("a", "coronary", 0.8), score("b", "coronary", 0.6)]
    opposite = [replace(rows[0], length_error=-0.25), replace(rows[1], length_error=0.75)]
    assert row_of("net", finished(tmp_path, opposite, swapped=[]))["tree length error"] == 0.5


@pytest.mark.parametrize("phantom", ["coronary", "aorta"])
def test_the_published_rows_show_what_is_claimed_of_them(phantom: str) -> None:
    assert not list(broken_claims(phantom, read_result(RESULTS / f"{phantom}_phantom.json")["rows"]))


def test_a_claim_that_the_rows_do_not_show_is_named() -> None:
    rows = read_result(RESULTS / "aorta_phantom.json")["rows"]
    ours = rows[0] | {"mean Dice": 0.6, "minutes": 46, "sides swapped": 1}
    baseline = rows[-1] | {"mean Dice": 0.4}
    assert list(broken_claims("aorta", [ours, baseline])) == [
        "UMambaBot, AdamW: mean Dice is 0.6, claimed at least 0.65",
        "UMambaBot, AdamW: minutes 46, claimed at most 45",
        "UMambaBot, AdamW: sides swapped 1, claimed at most 0",
        f"{baseline['method']}: mean Dice is 0.4, claimed below 0.4",
    ]
