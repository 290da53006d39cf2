"""Blur against SciPy, and low resolution against hand-computed values."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from uumamba.data.augmentation import Blur, LowResolution

COARSE: dict[str, Any] = {"probability": 1.0, "channel_probability": 1.0, "zoom": (0.5, 1.0)}


@pytest.mark.parametrize(("shape", "axes"), [((20, 24), 2), ((9, 12, 10), 3), ((5, 12, 14), 2)])
def test_blur_equals_scipys_per_sample_channel_and_axis(shape: tuple[int, ...], axes: int) -> None:
    image = torch.randn(2, 2, *shape)
    sigma_voxels = 0.5 + 0.5 * torch.rand(2, 2, axes)
    sigma_voxels[1, 1] = 0.0
    blurred = Blur(probability=1.0, channel_probability=1.0, axes=axes, sigma_voxels=(0.5, 1.0)).apply(
        image, {"sigma_voxels": sigma_voxels}
    )
    assert torch.equal(blurred[1, 1], image[1, 1]), "a channel with width 0 is unchanged"
    for sample, channel in ((0, 0), (0, 1), (1, 0)):
        sigma = [0.0] * (len(shape) - axes) + sigma_voxels[sample, channel].tolist()
        expected = ndimage.gaussian_filter(image[sample, channel].numpy(), sigma, mode="nearest", radius=3)
        np.testing.assert_allclose(blurred[sample, channel], expected, atol=1e-5)


def test_half_the_resolution_keeps_every_second_voxel_and_interpolates_linearly() -> None:
    row = torch.tensor([0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0])
    # Voxels 1, 3, 5, 7 are kept (nearest to the centres 0.5, 2.5, ..., rounded up) and placed at these centres.
    expected = torch.tensor([10.0, 15.0, 25.0, 35.0, 45.0, 55.0, 65.0, 70.0])
    for axis in range(3):
        shape = [-1 if each == axis else 1 for each in range(3)]
        volume = row.reshape(shape).expand(8, 8, 8)[None, None]
        coarse = LowResolution(**COARSE).apply(volume, {"zoom": torch.tensor([[0.5]])})
        torch.testing.assert_close(coarse[0, 0], expected.reshape(shape).expand(8, 8, 8))


def test_a_zoom_of_1_or_0_is_the_identity() -> None:
    image = torch.randn(1, 2, 6, 7, 8)
    coarse = LowResolution(**COARSE).apply(image, {"zoom": torch.tensor([[1.0, 0.0]])})
    torch.testing.assert_close(coarse, image)
    assert torch.equal(coarse[:, 1], image[:, 1])


def test_a_flat_patch_is_coarsened_slice_by_slice() -> None:
    volume, values = torch.randn(1, 1, 4, 12, 12), {"zoom": torch.tensor([[0.6]])}
    coarse = LowResolution(**COARSE, in_plane_only=True).apply(volume, values)
    for z in range(4):
        torch.testing.assert_close(coarse[:, :, z], LowResolution(**COARSE).apply(volume[:, :, z], values))
