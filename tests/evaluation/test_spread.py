"""Spread of a score over seeds, folds and all trainings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uumamba.evaluation.spread import spread


def test_the_spread_of_two_seeds_and_two_folds_follows_by_hand() -> None:
    # Seeds' means 0.5 and 0.7, folds' means 0.55 and 0.65; of two values the deviation is their distance / sqrt(2).
    found = spread({(0, "0"): 0.4, (0, "1"): 0.6, (1, "0"): 0.7, (1, "1"): 0.7})
    assert found.mean == pytest.approx(0.6)
    assert found.sd == pytest.approx(((0.2**2 + 0.0**2 + 0.1**2 + 0.1**2) / 3) ** 0.5)
    assert found.sd_over_seeds == pytest.approx(0.2 / 2**0.5)
    assert found.sd_over_folds == pytest.approx(0.1 / 2**0.5)
    assert found.n == 4


def test_one_training_has_a_mean_and_no_spread() -> None:
    undefined = dict.fromkeys(("sd", "sd_over_seeds", "sd_over_folds"))
    assert spread({(0, "0"): 0.5}).as_dict() == {"mean": 0.5, **undefined, "n": 1}


@given(st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_the_spread_over_folds_of_one_seed_is_that_of_all_trainings(values: list[float]) -> None:
    found = spread({(3, str(fold)): value for fold, value in enumerate(values)})
    assert found.sd_over_seeds is None
    assert found.sd_over_folds == pytest.approx(found.sd)
