"""Orientation of native axes to Z, Y and X, and back."""

from itertools import permutations, product
from typing import Any

import numpy as np
import pytest

from uumamba.data.geometry import find_geometry

ORIENTATIONS = list(product(permutations(range(3)), product((1, -1), repeat=3)))


def affine_of(order: tuple[int, ...], signs: tuple[int, ...], spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Make an affine with native axis ``i`` along world axis ``order[i]``."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * spacing_mm[axis]
    return affine


def test_axes_of_an_axial_scan_become_z_y_x_and_acdcs_are_flipped() -> None:
    geometry = find_geometry((30, 40, 5), spacing_mm=(1.5, 1.4, 10.0))
    assert (geometry.axes, geometry.flips) == ((2, 1, 0), (False, False, False))
    assert geometry.oriented_shape == (5, 40, 30)
    assert geometry.oriented_spacing_mm == (10.0, 1.4, 1.5)
    # ACDC's axes run to the left and to the back.
    geometry = find_geometry((30, 40, 5), spacing_mm=(1.5, 1.5, 10), affine=np.diag([-1.5, -1.5, 10, 1]))
    assert geometry.flips == (False, True, True)


@pytest.mark.parametrize(
    ("spacing_mm", "axes"),
    [
        ((1.0, 1.0, 1.0), (2, 1, 0)),  # all equal: S first
        ((1.0, 3.0, 1.0), (1, 2, 0)),  # coronal: A first, then S, R
        ((3.0, 1.0, 1.0), (0, 2, 1)),  # sagittal: R first, then S, A
        ((3.0, 3.0, 1.0), (1, 2, 0)),  # a tie without S: A
        ((1.0, 3.0, 2.9999), (2, 1, 0)),  # equal but for rounding
    ],
)
def test_the_axis_with_the_largest_spacing_comes_first(spacing_mm: tuple[float, ...], axes: tuple[int, ...]) -> None:
    assert find_geometry((4, 5, 6), spacing_mm=spacing_mm).axes == axes


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_unorient_undoes_orient_in_every_orientation(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    native = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    spacing_mm = (2.0, 2.5, 2.25)
    geometry = find_geometry(native.shape[1:], spacing_mm=spacing_mm, affine=affine_of(order, signs, spacing_mm))
    assert geometry.oriented_spacing_mm == tuple(spacing_mm[axis] for axis in geometry.axes)
    oriented = geometry.orient(native)
    assert oriented.shape[1:] == geometry.oriented_shape
    assert np.array_equal(geometry.unorient(oriented), native)


def test_an_oblique_affine_is_matched_to_the_nearest_axes() -> None:
    angle = np.radians(30)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * (1.5, 1.5, 8.0)
    assert find_geometry((4, 5, 6), spacing_mm=(1.5, 1.5, 8.0), affine=affine).axes == (2, 1, 0)


def test_the_prepared_grid_fills_the_crop() -> None:
    whole = find_geometry((30, 40, 5), spacing_mm=(1.2, 1.2, 10.0))
    geometry = whole.with_crop(((1, 4, 3), (5, 40, 28)), target_spacing_mm=(None, 1.5, 1.5))
    assert geometry.cropped_shape == (4, 36, 25)
    # 36 x 1.2 / 1.5 = 28.8 and 25 x 1.2 / 1.5 = 20.
    assert geometry.prepared_shape == (4, 29, 20)
    assert geometry.with_crop(((0, 0, 0), (1, 1, 1)), target_spacing_mm=(9, 9, 9)).prepared_shape == (1, 1, 1)
    extent_mm = np.multiply(geometry.prepared_spacing_mm, geometry.prepared_shape)
    np.testing.assert_allclose(extent_mm, np.multiply(geometry.cropped_shape, (10.0, 1.2, 1.2)))


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "affine", "key", "got"),
    [
        ((3, 4), (1, 1, 1), None, "native_shape", (3, 4)),
        ((3, 4, 5), (1, 0, 1), None, "spacing_mm", (1, 0, 1)),
        ((3, 4, 5), (1, 1), None, "spacing_mm", (1, 1)),
        ((3, 4, 5), (1, 1, 1), np.diag([1.0, 0, 1, 1]), "affine", np.diag([1.0, 0, 1, 1]).tolist()),
        ((3, 4, 5), (1, 1, 2), np.diag([1.0, 1, 3, 1]), "affine", "columns of length 1 x 1 x 3"),
    ],
)
def test_an_invalid_grid_is_refused(refused: Any, shape: Any, spacing_mm: Any, affine: Any, key: str, got: Any) -> None:
    with refused(key, got=got):
        find_geometry(shape, spacing_mm=spacing_mm, affine=affine)
