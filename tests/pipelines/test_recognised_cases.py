"""Tests of the cases to forget that their loss still gives away."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uumamba.pipelines.forgetting.case_measures import CaseMeasure
from uumamba.pipelines.forgetting.recognised_cases import find_recognised

LOSSES = st.lists(st.floats(0, 10), min_size=1, max_size=12, unique=True)


def by_loss(losses: list[float], *, voxel_loss: float = 1.0) -> dict[str, CaseMeasure]:
    return {f"case {number}": CaseMeasure(loss, voxel_loss, 0.9) for number, loss in enumerate(losses)}


@given(LOSSES)
def test_no_case_is_recognised_among_unseen_ones_with_the_same_losses(losses: list[float]) -> None:
    cases = by_loss(losses)
    assert find_recognised(cases, list(cases.values())) == {"loss": [], "voxel_loss": []}


@given(LOSSES, LOSSES)
def test_ranks_are_compared_as_by_hand(losses: list[float], unseen: list[float]) -> None:
    """Hazen's quantile p of m sorted values lies at their place p m - 1/2."""
    found = find_recognised(by_loss(losses), [*by_loss(unseen).values()])["loss"]
    values, recognised = sorted(unseen), set()
    for rank, number in enumerate(sorted(range(len(losses)), key=losses.__getitem__)):
        place = min(max((rank + 0.5) / len(losses) * len(values) - 0.5, 0), len(values) - 1)
        low, high = values[math.floor(place)], values[math.ceil(place)]
        target = low + (place - math.floor(place)) * (high - low)
        if math.isclose(losses[number], target, abs_tol=1e-9):
            return
        recognised |= {f"case {number}"} if losses[number] < target else set()
    pairs = [(own < other) - (own > other) for own in losses for other in unseen]
    assert set(found) == (recognised if sum(pairs) > 0 else set())


@pytest.mark.parametrize(
    ("loss", "voxel_loss", "by"), [(2.0, 2.0, []), (0.5, 2.0, ["loss"]), (2.0, 0.5, ["voxel_loss"])]
)
def test_a_case_is_recognised_by_either_loss(loss: float, voxel_loss: float, by: list[str]) -> None:
    found = find_recognised({"a": CaseMeasure(loss, voxel_loss, 0.9)}, [CaseMeasure(1.0, 1.0, 0.9)])
    assert [name for name, recognised in found.items() if recognised] == by
