import math

import pytest

from uumamba.evaluation import ScoreRow, mean_dice, mean_dice_of, summarise
from uumamba.evaluation.means import case_dice, moments


def test_structures_weigh_the_same_however_many_cases_have_them() -> None:
    mean = mean_dice({"RV": [0.5, math.nan, 0.7], "LV": [0.9, 0.9, 0.9], "LA": [math.nan]})
    assert mean.structures == {"RV": pytest.approx(0.6), "LV": pytest.approx(0.9), "LA": None}
    assert mean.foreground == pytest.approx((0.6 + 0.9) / 2)


def test_a_miss_counts_as_zero(cohort: tuple[ScoreRow, ...]) -> None:
    # Of the RV: 180/190, 80/90, missed, 1, 1, invented.
    assert mean_dice_of(cohort).structures["RV"] == pytest.approx((180 / 190 + 80 / 90 + 2) / 6)


def test_the_mean_is_that_of_the_summary(cohort: tuple[ScoreRow, ...]) -> None:
    mean, summary = mean_dice_of(cohort), summarise(cohort)
    assert mean.foreground == summary.foreground_dice
    assert mean.structures == {row.structure: row.dice.mean for row in summary.overall()}


def test_as_a_dict_nothing_is_nan() -> None:
    assert repr(mean_dice({"RV": [math.nan]}).as_dict()) == "{'dice': nan, 'RV': nan}"
    assert mean_dice({"RV": [0.25, 0.75]}).as_dict() == {"dice": 0.5, "RV": 0.5}


def test_the_mean_of_a_case_is_over_the_structures_it_has(cohort: tuple[ScoreRow, ...]) -> None:
    own = [row.dice for row in cohort if row.case_id == "a_1"]
    assert case_dice(cohort)["a_1"] == pytest.approx(sum(own) / 3)


def test_percent_is_a_hundred_times_mean_and_deviation() -> None:
    assert moments([-0.25, 0.25]).percent == moments([-25.0, 25.0])
    assert moments([]).percent == moments([])
