from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from uumamba.domain_generalization import RandConv

SHAPES = [(2, 3, 9), (2, 3, 9, 8), (2, 3, 9, 8, 7)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_the_result_is_one_convolution_with_zeros_around_and_without_bias(shape: tuple[int, ...], size: int) -> None:
    axes = len(shape) - 2
    images = torch.randn(shape, dtype=torch.float64)
    augment = RandConv(p=1.0, kernel_sizes=(size,), mix=False, generator=seeded())
    result = augment(images)
    assert result.shape == images.shape
    kernel = kernel_of(RandConv(p=1.0, kernel_sizes=(size,), mix=False, generator=seeded()), axes, size)
    padded = F.pad(images, [size // 2] * 2 * axes)
    windows = padded
    for axis in range(axes):
        windows = windows.unfold(axis + 2, size, 1)  # one more axis at the end for each
    sizes = "abc"[:axes]
    places = "xyz"[:axes]
    by_hand = torch.einsum(f"ni{places}{sizes},oi{sizes}->no{places}", windows, kernel)
    torch.testing.assert_close(result, by_hand)


def kernel_of(augment: RandConv, axes: int, size: int) -> Tensor:
    """The kernel from the responses to single voxels, channel by channel."""
    impulses = torch.zeros(3, 3, *[2 * size + 1] * axes, dtype=torch.float64)
    for channel in range(3):
        impulses[(channel, channel, *[size] * axes)] = 1
    answers = augment(impulses)
    middle = [slice(size - size // 2, size + size // 2 + 1)] * axes
    return answers[(slice(None), slice(None), *middle)].flip(list(range(2, axes + 2))).transpose(0, 1)


def test_the_mix_is_a_share_of_the_image_and_the_rest_of_its_convolution() -> None:
    images = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    convolved = RandConv(p=1.0, mix=False, generator=seeded(3))(images)
    mixed = RandConv(p=1.0, mix=True, generator=seeded(3))(images)  # the same kernel: the share is drawn after it
    shares = (mixed - convolved) / (images - convolved)
    assert 0 < shares.mean() < 1
    torch.testing.assert_close(shares, shares.mean().expand_as(shares))


@pytest.mark.parametrize(("shape", "size"), [((1, 3, 64), 5), ((1, 2, 16, 16), 3), ((1, 1, 8, 8, 8), 3)])
def test_kernels_keep_the_variance_of_white_noise(shape: tuple[int, ...], size: int) -> None:
    augment = RandConv(p=1.0, kernel_sizes=(size,), mix=False, generator=seeded())
    weights = torch.cat([augment._draw_kernel(torch.empty(shape)).flatten() for _ in range(400)])
    fan_in = shape[1] * size ** (len(shape) - 2)
    assert weights.std().item() == pytest.approx(fan_in**-0.5, rel=0.03)
    assert abs(weights.mean().item()) < 4 * fan_in**-0.5 / len(weights) ** 0.5


def test_every_kernel_size_has_the_same_probability() -> None:
    augment = RandConv(generator=seeded())
    sizes = [augment._draw_kernel(torch.zeros(1, 1, 8, 8)).shape[-1] for _ in range(1000)]
    assert {size: abs(sizes.count(size) - 250) < 55 for size in set(sizes)} == dict.fromkeys((1, 3, 5, 7), True)


def test_images_without_spatial_axes_or_of_integers_are_refused(refused: Any) -> None:
    with refused("images", got=(4, 8)):
        RandConv()(torch.randn(4, 8))
    with refused("images", got=torch.uint8):  # a kernel in uint8 is 0 throughout
        RandConv(p=1.0)(torch.ones(2, 3, 8, 8, dtype=torch.uint8))
