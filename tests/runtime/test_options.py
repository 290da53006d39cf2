"""Tests of containers that options accept in Python."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from uumamba.domain_generalization import RandConv, find_elbow
from uumamba.runtime.errors import UsageError
from uumamba.runtime.options import PositiveInt, Probability, check_options


@check_options
def count(sizes: Sequence[PositiveInt], *, shares: Sequence[Probability] = ()) -> int:
    return len(sizes) + len(shares)


@pytest.mark.parametrize("make", [tuple, list, np.array])
def test_lists_tuples_and_arrays_of_one_axis_are_sequences(make: Any) -> None:
    assert count(make([1, 2]), shares=make([0.0, 0.5])) == 4
    assert count(np.zeros(0, int)) == 0


@pytest.mark.parametrize(
    "wrong", [np.array([0.5]), np.array([1, 0]), np.array([[1]]), np.array([True]), "12", {1: 2}, 3, iter([1])]
)
def test_other_containers_and_elements_are_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"^sizes: got .*, expected a list, each a whole number of at least 1"):
        count(wrong)


def test_functions_of_measured_values_accept_arrays() -> None:
    errors = np.array([1.0, 0.5, 0.45, 0.44])
    assert find_elbow(errors) == find_elbow(errors.tolist())
    assert RandConv(kernel_sizes=np.array([1, 3])).kernel_sizes == (1, 3)
