"""Simulated low resolution."""

import torch

from uumamba.data.augmentation.low_resolution import LowResolution


def test_half_the_resolution_keeps_every_second_voxel_and_interpolates_between() -> None:
    row = torch.tensor([0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0])
    image = row.expand(1, 1, 8, 8)
    coarse = LowResolution().apply(image, {"zoom": torch.tensor([[0.5]])})
    # Voxels 1, 3, 5, 7 are kept (nearest to the centres 0.5, 2.5, ..., rounded up); they then stand at those centres.
    expected = torch.tensor([10.0, 15.0, 25.0, 35.0, 45.0, 55.0, 65.0, 70.0])
    torch.testing.assert_close(coarse[0, 0, 3], expected)


def test_a_zoom_of_one_is_the_identity_and_of_zero_leaves_the_channel_alone() -> None:
    image = torch.randn(1, 2, 6, 7, 8)
    coarse = LowResolution().apply(image, {"zoom": torch.tensor([[1.0, 0.0]])})
    torch.testing.assert_close(coarse, image)
    assert torch.equal(coarse[:, 1], image[:, 1])


def test_a_flat_patch_is_coarsened_slice_by_slice() -> None:
    volume = torch.randn(1, 1, 4, 12, 12)
    values = {"zoom": torch.tensor([[0.6]])}
    coarse = LowResolution(in_plane_only=True).apply(volume, values)
    for z in range(4):
        torch.testing.assert_close(coarse[:, :, z], LowResolution().apply(volume[:, :, z], values))


def test_in_3d_all_three_axes_lose_detail() -> None:
    ramp = torch.arange(8.0)
    for axis in range(3):
        volume = ramp.reshape([-1 if a == axis else 1 for a in range(3)]).expand(8, 8, 8)[None, None]
        coarse = LowResolution().apply(volume, {"zoom": torch.tensor([[0.5]])})
        assert not torch.allclose(coarse, volume)
