"""Rotation and scaling of image and label: axes, signs and borders."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from uumamba.data.augmentation.affine import Affine, rotation_matrices
from uumamba.data.augmentation.parameters import Drawn, draw_for_batch

SIZES = [(33, 30), (16, 18, 20), (5, 24, 22)]


def make_affine(**options: Any) -> Affine:
    return Affine(**({"rotation_probability": 0.2, "scale_probability": 0.2, "scale": (0.7, 1.4)} | options))


def drawn(angles_deg: list[float], scale: float = 1.0) -> Drawn:
    return Drawn(rows=(0,), values={"angles_deg": torch.tensor([angles_deg]), "scale": torch.tensor([scale])})


def batch_of(image: Tensor) -> tuple[Tensor, Tensor]:
    return image[None, None].float(), image[None, None].long()


@pytest.mark.parametrize("patch_size", SIZES)
def test_unchanged_samples_are_cropped_bit_for_bit_and_a_rotation_by_zero_equals_the_crop(
    patch_size: tuple[int, ...],
) -> None:
    affine = make_affine(patch_size=patch_size)
    image = torch.randn(1, 3, *(size + 3 for size in patch_size))
    label = torch.randint(0, 4, (1, 1, *image.shape[2:]))
    cropped, cropped_label = affine.apply(image, label, Drawn((), {}))
    window = (..., *(slice(1, 1 + size) for size in patch_size))  # of 3 extra voxels, 1 is before and 2 are after
    assert torch.equal(cropped, image[window])
    assert torch.equal(cropped_label, label[window])
    rotated, rotated_label = affine.apply(image, label, drawn([0.0] if affine.in_plane_only else [0.0, 0.0, 0.0]))
    torch.testing.assert_close(rotated, cropped, rtol=0, atol=1e-4)
    assert torch.equal(rotated_label, cropped_label)


@pytest.mark.parametrize(
    ("angles_deg", "planes"),
    [
        ([90.0], [(0, 1)]),  # from Y towards X
        ([90.0, 0.0, 0.0], [(1, 2)]),
        ([0.0, 90.0, 0.0], [(0, 2)]),
        ([0.0, 0.0, 90.0], [(0, 1)]),
        ([90.0, 90.0, 90.0], [(0, 1), (0, 2), (1, 2)]),  # about X, then Y, then Z
    ],
)
def test_a_rotation_by_90_degrees_equals_rot90(angles_deg: list[float], planes: list[tuple[int, int]]) -> None:
    array = torch.randint(0, 9, (8,) * (2 if len(angles_deg) == 1 else 3))
    image, label = make_affine(patch_size=array.shape).apply(*batch_of(array), drawn(angles_deg))
    expected = array
    for plane in planes:
        expected = torch.rot90(expected, 1, plane)
    torch.testing.assert_close(image[0, 0], expected.float(), rtol=0, atol=1e-4)
    assert torch.equal(label[0, 0], expected)


def test_each_slice_of_a_flat_patch_is_rotated_like_a_2d_image() -> None:
    volume = torch.randn(1, 2, 6, 30, 30)
    label = torch.randint(0, 4, (1, 1, 6, 30, 30))
    rotated, rotated_label = make_affine(patch_size=(4, 24, 24)).apply(volume, label, drawn([33.0], 1.2))
    flat = make_affine(patch_size=(24, 24))
    for z in range(4):
        slice_image, slice_label = flat.apply(volume[:, :, 1 + z], label[:, :, 1 + z], drawn([33.0], 1.2))
        assert torch.equal(rotated[:, :, z], slice_image)
        assert torch.equal(rotated_label[:, :, z], slice_label)


@pytest.mark.parametrize(("shape", "angles_deg"), [((24, 31), [25.0]), ((14, 16, 18), [20.0, -15.0, 10.0])])
def test_resampling_equals_scipys(shape: tuple[int, ...], angles_deg: list[float]) -> None:
    generator = np.random.default_rng(0)
    array = ndimage.gaussian_filter(generator.normal(size=shape), 1.0)
    scale = 1.3
    inverse = rotation_matrices(torch.tensor([angles_deg]))[0].T.numpy() / scale
    centre = (np.array(shape) - 1) / 2
    expected = ndimage.affine_transform(array, inverse, offset=centre - inverse @ centre, order=1, mode="nearest")
    image = torch.from_numpy(array)[None, None].float()
    moved, _ = make_affine(patch_size=shape).apply(
        image, torch.zeros_like(image, dtype=torch.long), drawn(angles_deg, scale)
    )
    np.testing.assert_allclose(moved[0, 0], expected, atol=1e-4)


def test_outside_of_the_window_the_image_border_is_repeated_and_the_label_is_background() -> None:
    image, label = torch.full((1, 1, 20, 20), 5.0), torch.full((1, 1, 20, 20), 2)
    moved, moved_label = make_affine(patch_size=(20, 20)).apply(image, label, drawn([45.0], 0.7))
    torch.testing.assert_close(moved, image)
    assert moved_label[0, 0, 0, 0] == 0
    assert moved_label[0, 0, 10, 10] == 2


def test_a_larger_window_fills_the_corners_of_a_rotated_patch() -> None:
    label = torch.ones(1, 1, 30, 30, dtype=torch.long)
    _, moved = make_affine(patch_size=(20, 20)).apply(label.float(), label, drawn([45.0]))
    assert moved.min() == 1  # 20 / 2 x sqrt(2) = 14.1 voxels to a corner; the window has 15


def test_angles_and_scales_stay_in_their_range_and_reach_its_ends() -> None:
    affine = make_affine(patch_size=(8, 8), rotation_probability=1.0, scale_probability=1.0, rotation_deg=(-20.0, 40.0))
    values = draw_for_batch("affine", range(1000), affine.draw).values
    for key, (low, high), near in (("angles_deg", (-20, 40), 1), ("scale", (0.7, 1.4), 0.01)):
        assert low <= values[key].min() < low + near
        assert high - near < values[key].max() < high
