"""Gaussian blur."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from uumamba.data.augmentation.blur import Blur


@pytest.mark.parametrize(("shape", "axes"), [((20, 24), 2), ((9, 12, 10), 3), ((5, 12, 14), 2)])
def test_blur_agrees_with_scipy_for_each_sample_channel_and_axis(shape: tuple[int, ...], axes: int) -> None:
    image = torch.randn(2, 2, *shape)
    sigma_voxels = 0.5 + 0.5 * torch.rand(2, 2, axes)
    blurred = Blur(axes=axes, sigma_voxels=(0.5, 1.0)).apply(image, {"sigma_voxels": sigma_voxels})
    for sample in range(2):
        for channel in range(2):
            sigma = [0.0] * (len(shape) - axes) + sigma_voxels[sample, channel].tolist()
            expected = ndimage.gaussian_filter(image[sample, channel].numpy(), sigma, mode="nearest", radius=3)
            np.testing.assert_allclose(blurred[sample, channel], expected, atol=1e-5)


def test_a_channel_that_was_not_chosen_keeps_every_bit() -> None:
    image = torch.randn(1, 2, 12, 12)
    blurred = Blur().apply(image, {"sigma_voxels": torch.tensor([[[0.0, 0.0], [1.0, 0.7]]])})
    assert torch.equal(blurred[:, 0], image[:, 0])
    assert not torch.equal(blurred[:, 1], image[:, 1])


def test_a_constant_image_stays_constant_up_to_its_border() -> None:
    image = torch.full((1, 1, 8, 8), 3.0)
    blurred = Blur().apply(image, {"sigma_voxels": torch.tensor([[[0.6, 1.0]]])})
    torch.testing.assert_close(blurred, image)


def test_a_width_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"blur_sigma_voxels must lie above 0.0"):
        Blur(sigma_voxels=(0.0, 1.0))
