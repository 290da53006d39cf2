"""Resampling, compared with SciPy and torch."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from uumamba.data import chunks
from uumamba.data.resample import (
    fill,
    image_slabs,
    resample_label,
    resample_linear,
    resampled_argmax,
)

SHAPES = [(5, 13, 17), (5, 40, 9), (11, 20, 24), (2, 7, 30), (1, 20, 24), (5, 20, 24)]


@pytest.fixture
def maps() -> np.ndarray:
    return np.random.default_rng(0).random((2, 5, 20, 24), dtype=np.float32)


def resample_image(image: np.ndarray, shape: tuple[int, ...], *, anisotropic: bool) -> np.ndarray:
    """Resample each channel of ``(C, Z, Y, X)`` with :func:`image_slabs`."""
    result = np.empty((len(image), *shape), dtype=np.float32)
    for each, target in zip(image, result, strict=True):
        fill(target, image_slabs(lambda a, b, each=each: each[a:b], each.shape, shape, anisotropic=anisotropic))
    return result


def scipy_zoom(array: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    factors = [new / old for new, old in zip(shape, array.shape, strict=True)]
    return ndimage.zoom(array, factors, order=order, grid_mode=True, mode="nearest")


def test_an_equal_grid_is_copied_bit_for_bit(maps: np.ndarray) -> None:
    for anisotropic in (True, False):
        assert np.array_equal(resample_image(maps, maps.shape[1:], anisotropic=anisotropic), maps)
    assert np.array_equal(resample_linear(maps, maps.shape[1:]), maps)
    label = (maps[0] * 4).astype(np.uint8)
    assert np.array_equal(resample_label(label, label.shape), label)


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_resampling_equals_scipys(maps: np.ndarray, shape: tuple[int, int, int]) -> None:
    expected = np.stack([scipy_zoom(each, shape, order=1) for each in maps])
    np.testing.assert_allclose(resample_linear(maps, shape), expected, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_cubic_resampling_is_near_scipys_spline_on_a_smooth_image(shape: tuple[int, int, int]) -> None:
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).random((5, 20, 24)), 3).astype(np.float32)
    found = resample_image(smooth[None], shape, anisotropic=False)[0]
    assert np.abs(found - scipy_zoom(smooth, shape, order=3)).max() < 0.05 * np.ptp(smooth)


def test_anisotropic_images_are_resampled_linearly_through_plane_and_by_plane_in_plane(
    maps: np.ndarray,
) -> None:
    found = resample_image(maps, (9, 20, 24), anisotropic=True)
    np.testing.assert_allclose(found[0], scipy_zoom(maps[0], (9, 20, 24), order=1), atol=1e-5)
    in_plane = resample_image(maps, (5, 31, 24), anisotropic=True)
    alone = resample_image(maps[:, 2:3], (1, 31, 24), anisotropic=True)
    assert np.array_equal(in_plane[:, 2:3], alone)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_label_gets_no_new_value_and_flips_commute_with_resampling(shape: tuple[int, int, int]) -> None:
    label = np.random.default_rng(2).choice(np.array([0, 3, 7], dtype=np.uint8), (5, 20, 24))
    found = resample_label(label, shape)
    assert found.dtype == np.uint8
    assert set(np.unique(found)) <= {0, 3, 7}
    binary = (ndimage.gaussian_filter(label.astype(float), 2) > 3).astype(np.uint8)  # no ties
    flipped = resample_label(binary[::-1, :, ::-1], shape)[::-1, :, ::-1]
    assert np.mean(flipped != resample_label(binary, shape)) < 0.01


def test_resampled_argmax_equals_the_argmax_of_resampled_maps() -> None:
    scores = np.random.default_rng(3).random((4, 5, 20, 24), dtype=np.float32)
    expected = resample_linear(scores, (9, 31, 15))
    assert np.array_equal(resampled_argmax(scores, (9, 31, 15)), expected.argmax(axis=0))
    scores /= scores.sum(axis=0)
    np.testing.assert_allclose(resample_linear(scores, (9, 31, 15)).sum(axis=0), 1, atol=1e-5)
    half = np.full((1, 2, 2), 0.5, dtype=np.float32)
    assert not resampled_argmax([half, half], (1, 4, 4)).any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("voxels", [1, 1500])
def test_resampling_in_slabs_equals_resampling_at_once(
    maps: np.ndarray, shape: tuple[int, int, int], voxels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = np.random.default_rng(2).choice(np.array([0, 3, 7], dtype=np.uint8), (5, 20, 24))

    def resampled() -> list[np.ndarray]:
        images = [resample_image(maps, shape, anisotropic=anisotropic) for anisotropic in (True, False)]
        return [*images, resample_linear(maps, shape), resample_label(label, shape), resampled_argmax(maps, shape)]

    whole = resampled()
    monkeypatch.setattr(chunks, "CHUNK_VOXELS", voxels)
    for found, expected in zip(resampled(), whole, strict=True):
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
def test_through_plane_resampling_equals_torchs_kernel(kernel: str) -> None:
    column = torch.randn(1, 1, 33, 60, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(column, size=(40, 60), mode=kernel, align_corners=False)
    planes = column.reshape(1, 33, 6, 10).numpy()
    found = resample_image(planes, (40, 6, 10), anisotropic=kernel == "bilinear")
    np.testing.assert_allclose(found.reshape(40, 60), expected[0, 0], atol=1e-6)
