"""The knee is where the fall of the error slows, told at once and never taken back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uumamba.domain_generalization import find_knee


@pytest.mark.parametrize(
    ("errors", "knee"),
    [
        ([0.9, 0.5, 0.2, 0.19], 3),  # 0.01 is less than a tenth of 0.4
        ([0.9, 0.5, 0.2, 0.15], None),  # 0.05 is more
        ([0.9, 0.5, 0.2, 0.15, 0.12], 4),
        ([0.9, 0.1, 0.2], 2),  # an error that rises has slowed
        ([0.9, 0.9, 0.899, 0.899, 0.4, 0.39], 5),  # nothing was learned before
        ([0.9, 0.5], None),  # the first fall is the largest
        ([0.9], None),
        ([], None),
        ([0.0, 0.0, 0.0], None),
    ],
)
def test_the_knee_is_the_first_epoch_of_slow_fall(errors: list[float], knee: int | None) -> None:
    assert find_knee(errors) == knee


@given(st.lists(st.floats(0, 1), max_size=12), st.integers(0, 12))
def test_later_epochs_never_change_a_knee(errors: list[float], seen: int) -> None:
    early = find_knee(errors[:seen])
    assert early is None or early == find_knee(errors)


@given(st.lists(st.integers(0, 1000), max_size=12))
def test_the_knee_does_not_depend_on_the_unit_of_the_error(errors: list[int]) -> None:
    assert find_knee([1024.0 * error for error in errors]) == find_knee([float(error) for error in errors])


def test_a_larger_share_is_reached_no_later() -> None:
    errors = [2.0**-epoch for epoch in range(9)]  # each fall is half of the one before
    # the fall in epoch t is 2^-t, in the first one's 2^-(t - 1)
    assert [find_knee(errors, slowing=share) for share in (0.6, 0.3, 0.1, 0.05)] == [2, 3, 5, 6]


@pytest.mark.parametrize(
    ("errors", "options", "complaint"),
    [
        ([0.9, float("nan")], {}, "training error after 1 epochs is nan: lower the probe's learning rate"),
        ([0.9, 0.5], {"slowing": 0.0}, "slowing must lie between 0 and 1, got 0.0"),
        ([0.9, 0.5], {"learned": 1.0}, "learned must lie between 0 and 1, got 1.0"),
    ],
)
def test_what_makes_no_sense_is_refused(errors: list[float], options: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        find_knee(errors, **options)
