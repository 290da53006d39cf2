"""The elbow is where the fall of the error slows, told at once and never taken back."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uumamba.domain_generalization import Probe, ProbeOutputs, find_elbow


@pytest.mark.parametrize(
    ("errors", "elbow"),
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
def test_the_elbow_is_the_first_epoch_of_slow_fall(errors: list[float], elbow: int | None) -> None:
    assert find_elbow(errors) == elbow


@given(st.lists(st.floats(0, 1), max_size=12), st.integers(0, 12))
def test_later_epochs_never_change_an_elbow(errors: list[float], seen: int) -> None:
    early = find_elbow(errors[:seen])
    assert early is None or early == find_elbow(errors)


@given(st.lists(st.integers(0, 1000), max_size=12))
def test_the_elbow_does_not_depend_on_the_unit_of_the_error(errors: list[int]) -> None:
    assert find_elbow([1024.0 * error for error in errors]) == find_elbow([float(error) for error in errors])


def test_a_larger_share_is_reached_no_later() -> None:
    errors = [2.0**-epoch for epoch in range(9)]  # each fall is half of the one before
    # the fall in epoch t is 2^-t, in the first one's 2^-(t - 1)
    assert [find_elbow(errors, slowing=share) for share in (0.6, 0.3, 0.1, 0.05)] == [2, 3, 5, 6]


@pytest.mark.parametrize("options", [{"slowing": 0.0}, {"learned": 1.0}], ids=str)
def test_a_share_out_of_range_and_an_error_that_is_not_finite_are_refused(
    options: dict[str, float], refused: Any
) -> None:
    ((key, value),) = options.items()
    with refused(key, got=value):
        find_elbow([0.9, 0.5], **options)
    with refused("errors"):
        find_elbow([0.9, float("nan")])


def test_a_probe_keeps_the_outputs_of_the_elbow() -> None:
    probe = Probe()
    for step, error in enumerate((0.9, 0.4, 0.1, 0.09, 0.01)):
        vectors = torch.full((2, 2), float(step))
        ended = probe.add(ProbeOutputs(vectors, torch.zeros(2), torch.zeros(2, dtype=torch.long), error, "", 1))
        assert ended == (step >= 3)
    assert probe.outputs is not None
    assert (probe.epoch, probe.errors, float(probe.outputs.vectors[0, 0])) == (3, [0.9, 0.4, 0.1, 0.09], 3.0)
