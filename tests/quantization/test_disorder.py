import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uumamba.quantization import gradient_disorder


def test_alternating_signs_have_disorder_1_and_constant_signs_0() -> None:
    alternating = torch.tensor([1.0, -2.0, 0.5, -0.1, 3.0])
    assert gradient_disorder(alternating).item() == 1
    assert gradient_disorder(alternating.abs()).item() == 0
    assert gradient_disorder(-alternating.abs()).item() == 0


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0, float("nan")]), min_size=1, max_size=30))
def test_zeros_and_nan_are_left_out(gradients: list[float]) -> None:
    signs = [sign for sign in gradients if sign in (-1.0, 1.0)]
    flips = [a != b for a, b in pairwise(signs)]
    expected = sum(flips) / len(flips) if flips else math.nan
    assert gradient_disorder(torch.tensor(gradients)).item() == pytest.approx(expected, nan_ok=True)


def test_each_entry_has_its_own_disorder_and_without_steps_nan() -> None:
    gradients = torch.tensor([[[1.0], [1.0]], [[-1.0], [2.0]], [[1.0], [3.0]]])
    assert gradient_disorder(gradients).tolist() == [[1.0], [0.0]]
    assert gradient_disorder(torch.zeros(0, 3)).isnan().all()
