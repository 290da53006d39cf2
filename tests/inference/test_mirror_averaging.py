"""Mirror averaging over all combinations of the given axes."""

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from uumamba.inference import mirrored_mean


def test_without_axes_the_function_itself_is_returned() -> None:
    assert mirrored_mean(torch.sigmoid, ()) is torch.sigmoid


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1), (1, 0)])
def test_the_mean_is_over_every_combination_of_the_axes(axes: tuple[int, ...]) -> None:
    ramp = torch.arange(12.0).reshape(3, 4)
    predict = Mock(side_effect=lambda x: x * ramp)
    x = torch.randn(1, 1, 3, 4)
    found = mirrored_mean(predict, axes)(x)
    rows = [ramp, ramp.flip(0)] if 0 in axes else [ramp]
    flipped = [each for row in rows for each in ([row, row.flip(1)] if 1 in axes else [row])]
    torch.testing.assert_close(found, x * torch.stack(flipped).mean(dim=0))
    assert predict.call_count == 2 ** len(axes)


def test_the_mean_does_not_change_when_the_input_is_mirrored() -> None:
    convolution = torch.nn.Conv2d(1, 2, 3, padding=1)
    predict = mirrored_mean(convolution, (0, 1))
    x = torch.randn(1, 1, 6, 7)
    torch.testing.assert_close(predict(x.flip(2)), predict(x).flip(2))


def classify_by_side(x: Tensor) -> Tensor:
    """Class 1 for bright voxels on the left, 2 on the right."""
    bright = (x > 0.5).float()
    half = x.shape[-1] // 2
    left = torch.cat([bright[..., :half], torch.zeros_like(bright[..., half:])], -1)
    return torch.cat([1 - bright, left, bright - left], 1)


def test_swaps_restore_the_class_of_each_side() -> None:
    x = torch.rand(2, 1, 6, 8)
    torch.testing.assert_close(mirrored_mean(classify_by_side, (0, 1), swaps={1: [(1, 2)]})(x), classify_by_side(x))
    confused = mirrored_mean(classify_by_side, (0, 1))(x)  # without swaps, each side has half the probability
    assert confused[:, 1:][classify_by_side(x)[:, 1:] == 1].unique().tolist() == [0.5]


def test_two_flips_with_the_same_swap_cancel() -> None:
    x = torch.randn(1, 3, 4, 4)
    both = mirrored_mean(torch.sigmoid, (0, 1), swaps={0: [(0, 2)], 1: [(0, 2)]})(x)
    swapped = torch.sigmoid(x)[:, [2, 1, 0]]
    torch.testing.assert_close(both, (2 * torch.sigmoid(x) + 2 * swapped) / 4)


@pytest.mark.parametrize(
    ("axes", "swaps", "key", "got"),
    [((-1,), None, "axes", (-1,)), ((0, 0), None, "axes", (0, 0)), ((0,), {1: [(0, 1)]}, "swaps", [1])],
)
def test_wrong_axes_and_swaps_are_refused(axes: Any, swaps: Any, key: str, got: Any, refused: Any) -> None:
    with refused(key, got=got):
        mirrored_mean(torch.sigmoid, axes, swaps=swaps)
