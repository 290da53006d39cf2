"""Soft skeleton against scipy, MONAI and finite differences."""

import numpy as np
import pytest
import torch
from monai.losses.cldice import soft_skel
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from uumamba.losses.soft_skeleton import soft_skeleton

SHAPES = [(1, 1, 9), (2, 3, 8, 11), (2, 2, 6, 7, 5), (1, 1, 1, 6, 2)]


def values(shape: tuple[int, ...], *, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_scipy(image: NDArray[np.float64], iterations: int) -> NDArray[np.float64]:
    """Compute the formula with scipy's grey morphology.

    Erosion has a cross, dilation a box; voxels outside the image are excluded.
    """
    cross = ndimage.generate_binary_structure(image.ndim, 1)
    box = np.ones((3,) * image.ndim, dtype=bool)
    rest = np.ones_like(image)
    for _ in range(iterations + 1):
        eroded = ndimage.grey_erosion(image, footprint=cross, mode="constant", cval=np.inf)
        opened = ndimage.grey_dilation(eroded, footprint=box, mode="constant", cval=-np.inf)
        rest *= 1 - np.maximum(image - opened, 0)
        image = eroded
    return 1 - rest


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("iterations", [0, 1, 4])
def test_skeleton_equals_the_formula_with_scipys_morphology(shape: tuple[int, ...], iterations: int) -> None:
    image = values(shape)
    found = soft_skeleton(image, iterations=iterations)
    for each, expected in zip(found.flatten(0, 1), image.flatten(0, 1), strict=True):
        np.testing.assert_allclose(each.numpy(), by_scipy(expected.numpy(), iterations), atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 8, 11), (2, 2, 6, 7, 5)])
def test_value_and_gradient_equal_monais(shape: tuple[int, ...]) -> None:
    image, monai_image = values(shape).requires_grad_(), values(shape).requires_grad_()
    found, expected = soft_skeleton(image, iterations=3), soft_skel(monai_image, 3)
    torch.testing.assert_close(found, expected)
    weights = values(shape, seed=1)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(image.grad, monai_image.grad)


@pytest.mark.parametrize("shape", [(1, 1, 4, 5), (1, 1, 3, 4, 2)])
def test_first_and_second_gradients_equal_finite_differences(shape: tuple[int, ...]) -> None:
    image = values(shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda each: soft_skeleton(each, iterations=2), image)
    assert torch.autograd.gradgradcheck(lambda each: soft_skeleton(each, iterations=2), image)


def test_equal_neighbours_share_the_gradient() -> None:
    # The middle voxel is 1 - 0.5 above its opening; the erosion to 0.5 has two neighbours of this value.
    image = torch.tensor([0.5, 1.0, 0.5], dtype=torch.float64).reshape(1, 1, 3).requires_grad_()
    soft_skeleton(image, iterations=0).sum().backward()
    assert image.grad is not None
    assert image.grad.flatten().tolist() == [-0.5, 1.0, -0.5]


@pytest.mark.parametrize("shape", SHAPES)
def test_skeleton_of_a_mask_equals_that_of_its_values(shape: tuple[int, ...]) -> None:
    mask = values(shape) > 0.3
    found = soft_skeleton(mask, iterations=3)
    assert found.dtype == torch.bool
    assert torch.equal(found, soft_skeleton(mask.double(), iterations=3) > 0)


def test_the_axis_of_a_tube_needs_as_many_iterations_as_its_radius() -> None:
    y, x = torch.meshgrid(torch.arange(-8, 9), torch.arange(-8, 9), indexing="ij")
    tube = ((y**2 + x**2) <= 25).expand(1, 1, 12, 17, 17)  # radius 5 along the first axis
    assert soft_skeleton(tube, iterations=5)[..., 8, 8].all()
    assert not soft_skeleton(tube, iterations=3)[..., 8, 8].any()
    assert (soft_skeleton(tube, iterations=5) & ~tube).sum() == 0
