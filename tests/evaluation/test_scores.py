import csv
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uumamba.evaluation import EvaluationPair, ScoreRow, evaluate, read_scores, write_scores
from uumamba.evaluation.scores import COLUMNS

HEAD = ["case_id", "patient_id", "phase", "structure", "dice", "hd95_mm", "nsd", "volume_ml", "label_volume_ml"]


def test_there_is_one_row_for_each_case_and_structure_in_order(
    cohort: tuple[ScoreRow, ...], structures: dict[str, int]
) -> None:
    cases = ["a_1", "a_9", "b_1", "b_7", "c_1", "c_8"]
    assert [(row.case_id, row.structure) for row in cohort] == [(case, name) for case in cases for name in structures]


def test_volumes_and_dice_of_hand_made_masks(cohort: tuple[ScoreRow, ...]) -> None:
    row = cohort[0]
    assert (row.volume_ml, row.label_volume_ml) == (90.0, 100.0)
    assert row.dice == 2 * 90 / (90 + 100)
    # The label's last row of ten voxels is missing: each lies one voxel, 10 mm, from the prediction.
    assert row.hd95_mm == 10.0


def test_a_missed_structure_has_dice_0_and_infinite_distance(cohort: tuple[ScoreRow, ...]) -> None:
    missed = next(row for row in cohort if row.case_id == "b_1" and row.structure == "RV")
    assert (missed.dice, missed.nsd, missed.hd95_mm, missed.assd_mm) == (0.0, 0.0, math.inf, math.inf)
    assert (missed.volume_ml, missed.label_volume_ml) == (0.0, 100.0)


def test_a_structure_absent_from_both_is_nan_and_still_has_its_row(
    make_pair: Callable[..., EvaluationPair], structures: dict[str, int]
) -> None:
    rows = evaluate([make_pair("a", {"LV": 10}, {"LV": 10})], structures=structures).rows
    absent = next(row for row in rows if row.structure == "MYO")
    assert (rows[2].dice, rows[2].hd95_mm, rows[2].nsd, rows[2].assd_mm) == (1.0, 0.0, 1.0, 0.0)
    assert all(math.isnan(value) for value in (absent.dice, absent.hd95_mm, absent.nsd, absent.assd_mm))
    assert absent.volume_ml == absent.label_volume_ml == 0.0


def test_pairs_are_taken_one_at_a_time(make_pair: Callable[..., EvaluationPair], structures: dict[str, int]) -> None:
    alive: list[str] = []

    def pairs() -> Iterator[EvaluationPair]:
        for name in ("a", "b"):
            alive.append(name)
            yield make_pair(name, {"LV": 1}, {"LV": 1})
            assert alive == ["a", "b"][: len(alive)]

    assert len(evaluate(pairs(), structures=structures).rows) == 6


def test_a_pair_on_two_grids_is_refused(structures: dict[str, int], refused: Any) -> None:
    pair = EvaluationPair("a", "a", np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 3), np.uint8), (1.0, 1.0, 1.0))
    with refused("prediction", got="shape (2, 2, 2)", case_id="a"):
        evaluate([pair], structures=structures)


def test_scores_csv_opens_with_the_columns_of_the_design(cohort: tuple[ScoreRow, ...], tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.csv", cohort)
    with (tmp_path / "scores.csv").open() as stream:
        assert next(csv.reader(stream))[: len(HEAD)] == HEAD


def test_scores_read_back_bit_for_bit(cohort: tuple[ScoreRow, ...], tmp_path: Path) -> None:
    rows = (*cohort, ScoreRow("n", 'p,"q"\n', None, "LV", math.nan, math.inf, 1 / 3, 0.1, 2e-9, math.nan, None))
    write_scores(tmp_path / "scores.csv", rows)
    assert repr(read_scores(tmp_path / "scores.csv")) == repr(rows)


@pytest.mark.parametrize(
    "text", [None, "case_id,dice\na,1\n", "\x00", ",".join(HEAD) + "\na,a,,LV,good,1,1,1,1\n", ",".join(COLUMNS)]
)
def test_a_missing_empty_or_other_table_is_refused(text: str | None, tmp_path: Path, refused: Any) -> None:
    path = tmp_path / "scores.csv"
    if text is not None:
        path.write_text(text)
    with refused(str(path)) as error:
        read_scores(path)
    assert "uumamba evaluate" in error.value.fix
