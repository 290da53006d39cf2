import math

import pytest

from uumamba.evaluation import ScoreRow, mean_dice, mean_dice_of, summarise
from uumamba.evaluation.means import case_dice, moments


def test_structures_have_the_same_weight_for_any_number_of_cases() -> None:
    mean = mean_dice({"RV": [0.5, math.nan, 0.7], "LV": [0.9, 0.9, 0.9], "LA": [math.nan]})
    assert mean.structures == {"RV": pytest.approx(0.6), "LV": pytest.approx(0.9), "LA": None}
    assert mean.foreground == pytest.approx((0.6 + 0.9) / 2)


def test_a_miss_counts_as_zero(cohort: tuple[ScoreRow, ...]) -> None:
    # Of the RV: 180/190, 80/90, missed, 1, 1, spurious.
    assert mean_dice_of(cohort).structures["RV"] == pytest.approx((180 / 190 + 80 / 90 + 2) / 6)


def test_the_mean_equals_that_of_the_summary(cohort: tuple[ScoreRow, ...]) -> None:
    mean, summary = mean_dice_of(cohort), summarise(cohort)
    assert mean.foreground == summary.foreground_dice
    assert mean.structures == {row.structure: row.dice.mean for row in summary.overall()}


def test_the_dictionary_of_means_has_nan_for_none() -> None:
    assert repr(mean_dice({"RV": [math.nan]}).as_dict()) == "{'dice': nan, 'RV': nan}"
    assert mean_dice({"RV": [0.25, 0.75]}).as_dict() == {"dice": 0.5, "RV": 0.5}


def test_the_mean_of_a_case_is_over_its_structures(cohort: tuple[ScoreRow, ...]) -> None:
    # Case c_8 has a spurious RV, a perfect MYO, and an LV of 90 ml for 80 ml.
    assert case_dice(cohort)["c_8"] == pytest.approx((0 + 1 + 160 / 170) / 3)


def test_percent_multiplies_mean_and_deviation_by_100() -> None:
    assert moments([-0.25, 0.25]).percent == moments([-25.0, 25.0])
    assert moments([]).percent == moments([])
