"""The spread of a score over seeds, over folds and over both."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uumamba.evaluation.spread import spread


def test_a_hand_computed_grid() -> None:
    # Seeds' means 0.5 and 0.7, folds' means 0.55 and 0.65; of two values the deviation is their distance / sqrt(2).
    found = spread({(0, "0"): 0.4, (0, "1"): 0.6, (1, "0"): 0.7, (1, "1"): 0.7})
    assert found.mean == pytest.approx(0.6)
    assert found.sd == pytest.approx(((0.2**2 + 0.0**2 + 0.1**2 + 0.1**2) / 3) ** 0.5)
    assert found.sd_over_seeds == pytest.approx(0.2 / 2**0.5)
    assert found.sd_over_folds == pytest.approx(0.1 / 2**0.5)
    assert found.n == 4


def test_of_one_training_there_is_a_mean_and_no_spread() -> None:
    assert spread({(0, "0"): 0.5}).as_dict() == {
        "mean": 0.5,
        "sd": None,
        "sd_over_seeds": None,
        "sd_over_folds": None,
        "n": 1,
    }


@given(st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_folds_of_one_seed_spread_as_all_trainings_do(values: list[float]) -> None:
    found = spread({(3, str(fold)): value for fold, value in enumerate(values)})
    assert found.sd_over_seeds is None
    assert found.sd_over_folds == pytest.approx(found.sd)
