import csv
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uumamba.evaluation import EvaluationPair, ScoreRow, evaluate, read_scores, write_scores
from uumamba.evaluation.scores import COLUMNS

HEAD = ["case_id", "patient_id", "phase", "structure", "dice", "hd95_mm", "nsd", "volume_ml", "label_volume_ml"]
ADDED = ["assd_mm", "group", "cl_dice", "betti0_error", "betti1_error", "betti2_error", "length_error"]
SIDES_AND_DOMAIN = ["partner", "partner_overlap_ml", "domain"]


def test_there_is_one_row_for_each_case_and_structure_in_order(
    cohort: tuple[ScoreRow, ...], structures: dict[str, int]
) -> None:
    cases = ["a_1", "a_9", "b_1", "b_7", "c_1", "c_8"]
    assert [(row.case_id, row.structure) for row in cohort] == [(case, name) for case in cases for name in structures]


def test_volumes_dice_and_distance_follow_from_the_masks_by_hand(cohort: tuple[ScoreRow, ...]) -> None:
    row = cohort[0]
    assert (row.volume_ml, row.label_volume_ml, row.dice) == (90.0, 100.0, 2 * 90 / (90 + 100))
    # The label's last row of ten voxels is missing: each is one voxel, 10 mm, from the prediction.
    assert row.hd95_mm == 10.0


@pytest.mark.parametrize(
    ("predicted", "labelled", "expected"),
    [
        (10, 10, (1.0, 1.0, 0.0, 0.0, 10.0, 10.0)),
        (0, 10, (0.0, 0.0, math.inf, math.inf, 0.0, 10.0)),
        (0, 0, (math.nan, math.nan, math.nan, math.nan, 0.0, 0.0)),
    ],
)
def test_a_perfect_a_missed_and_an_absent_structure_have_their_row(
    predicted: int, labelled: int, expected: tuple[float, ...], make_pair: Callable[..., EvaluationPair]
) -> None:
    (row,) = evaluate([make_pair("a", {"LV": predicted}, {"LV": labelled})], structures={"LV": 3}).rows
    found = (row.dice, row.nsd, row.hd95_mm, row.assd_mm, row.volume_ml, row.label_volume_ml)
    np.testing.assert_array_equal(found, expected)


def test_pairs_are_read_one_at_a_time(make_pair: Callable[..., EvaluationPair], structures: dict[str, int]) -> None:
    read: list[str] = []

    def pairs() -> Iterator[EvaluationPair]:
        for name in ("a", "b"):
            read.append(name)
            yield make_pair(name, {"LV": 1}, {"LV": 1})
            assert read == ["a", "b"][: len(read)]

    assert len(evaluate(pairs(), structures=structures).rows) == 6


def test_a_pair_on_two_grids_is_refused(structures: dict[str, int], refused: Any) -> None:
    pair = EvaluationPair("a", "a", np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 3), np.uint8), (1.0, 1.0, 1.0))
    with refused("prediction", got="shape (2, 2, 2)", case_id="a"):
        evaluate([pair], structures=structures)


def test_scores_csv_has_the_columns_of_the_design_in_order(cohort: tuple[ScoreRow, ...], tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.csv", cohort)
    with (tmp_path / "scores.csv").open() as stream:
        assert next(csv.reader(stream)) == HEAD + ADDED + SIDES_AND_DOMAIN == list(COLUMNS)


def test_scores_read_back_bit_for_bit(two_vendors: tuple[ScoreRow, ...], tmp_path: Path) -> None:
    odd = ScoreRow("n", 'p,"q"\n', None, "LV", math.nan, math.inf, 1 / 3, 0.1, 2e-9, math.nan, None)
    vessel = replace(odd, cl_dice=0.5, betti0_error=1.0, betti1_error=math.nan, length_error=-1 / 3)
    rows = (*two_vendors, odd, vessel, replace(odd, partner="RV", partner_overlap_ml=0.3))
    write_scores(tmp_path / "scores.csv", rows)
    assert repr(read_scores(tmp_path / "scores.csv")) == repr(rows)


@pytest.mark.parametrize("columns", [len(HEAD) + 2, len(COLUMNS) - 1])
def test_tables_of_earlier_versions_may_lack_columns(
    columns: int, cohort: tuple[ScoreRow, ...], tmp_path: Path
) -> None:
    write_scores(tmp_path / "scores.csv", cohort)
    with (tmp_path / "scores.csv").open(newline="") as stream:
        table = [line[:columns] for line in csv.reader(stream)]
    with (tmp_path / "older.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(table)
    assert repr(read_scores(tmp_path / "older.csv")) == repr(cohort)


CELLS = ["a", "a", "", "LV", "1", "1", "1", "1", "1", "1", ""]


@pytest.mark.parametrize(
    "table",
    [
        None,
        [["case_id", "dice"], ["a", "1"]],
        [["\x00"]],
        [COLUMNS],
        [COLUMNS, [*CELLS[:4], "good", *CELLS[5:]]],
        *([COLUMNS, [*CELLS[:place], "", *CELLS[place + 1 :]]] for place in (0, 1, 3, 4, 9)),
        [COLUMNS[:10], CELLS[:10]],
        [COLUMNS, ["x" * 200_000, *CELLS[1:]]],
    ],
)
def test_a_missing_empty_or_other_table_is_refused(table: list[list[str]] | None, tmp_path: Path, refused: Any) -> None:
    path = tmp_path / "scores.csv"
    if table is not None:
        path.write_text("\n".join(map(",".join, table)))
    with refused(str(path)) as error:
        read_scores(path)
    assert "uumamba evaluate" in error.value.fix


NAMES = [
    "=1+1",
    "+1",
    "-5",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\uff1d1",
    "'=1",
    "''-1",
    "'quoted'",
    "'",
    "plain",
    "a,b",
    'a"b',
]


@pytest.mark.parametrize("name", NAMES)
def test_no_text_cell_starts_a_formula_and_names_read_back(
    name: str, cohort: tuple[ScoreRow, ...], tmp_path: Path
) -> None:
    rows = [
        replace(row, case_id=name, patient_id=name, structure=name, phase=name, group=name, domain=name)
        for row in cohort
    ]
    rows = [replace(rows[0], length_error=-0.5, partner=name), *rows[1:]]
    write_scores(tmp_path / "scores.csv", rows)
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as stream:
        cells = next(csv.DictReader(stream))
    assert cells["length_error"] == "-0.5"
    texts = [cells[key] for key in ("case_id", "patient_id", "structure", "phase", "group", "domain", "partner")]
    assert not [text for text in texts if text.startswith(("=", "+", "-", "@", "\t", "\r", "\uff1d"))]
    assert repr(read_scores(tmp_path / "scores.csv")) == repr(tuple(rows))


def test_a_pipe_is_refused_and_a_missing_column_is_named(tmp_path: Path, refused: Any) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with refused(str(tmp_path / "pipe.csv"), got="a FIFO, not a regular file"):
        read_scores(tmp_path / "pipe.csv")
    (tmp_path / "semicolons.csv").write_text("case_id;patient_id\na;a\n")
    with refused(str(tmp_path / "semicolons.csv"), got="no column 'case_id', with commas between columns"):
        read_scores(tmp_path / "semicolons.csv")


def test_a_table_saved_by_a_spreadsheet_with_a_byte_order_mark_is_read(
    cohort: tuple[ScoreRow, ...], tmp_path: Path
) -> None:
    write_scores(tmp_path / "scores.csv", cohort)
    (tmp_path / "marked.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "scores.csv").read_bytes())
    assert repr(read_scores(tmp_path / "marked.csv")) == repr(cohort)
