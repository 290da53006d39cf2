from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uumamba.quantization import gradient_disorder


def test_alternating_signs_are_all_disorder_and_constant_ones_none() -> None:
    alternating = torch.tensor([1.0, -2.0, 0.5, -0.1, 3.0])
    assert gradient_disorder(alternating).item() == 1
    assert gradient_disorder(alternating.abs()).item() == 0
    assert gradient_disorder(-alternating.abs()).item() == 0


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0, float("nan")]), min_size=1, max_size=30))
def test_zeros_are_left_out_as_if_those_steps_had_not_been(gradients: list[float]) -> None:
    signs = [sign for sign in gradients if sign in (-1.0, 1.0)]
    pairs = list(pairwise(signs))
    found = gradient_disorder(torch.tensor(gradients)).item()
    if pairs:
        assert found == pytest.approx(sum(a != b for a, b in pairs) / len(pairs))
    else:
        assert found != found


def test_entries_are_counted_apart() -> None:
    gradients = torch.tensor([[[1.0], [1.0]], [[-1.0], [2.0]], [[1.0], [3.0]]])
    assert gradient_disorder(gradients).tolist() == [[1.0], [0.0]]


def test_without_any_step_nothing_is_known() -> None:
    assert gradient_disorder(torch.zeros(0, 3)).isnan().all()
