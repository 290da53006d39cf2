"""Centreline lengths of shapes of known length, and of odd masks."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from uumamba.metrics import centreline_length_error, centreline_length_mm

Draw = Callable[..., np.ndarray]
CUBES = (1.0, 1.0, 1.0)
DIRECTIONS = [way for way in itertools.product((0, 1, 2), (1, 2, 3), (2, 3, 5)) if math.gcd(*way) == 1]


def branch(*, arm: int = 8) -> np.ndarray:
    """Thin Y: a stem of ten steps, two arms of diagonal steps."""
    mask = np.zeros((25, 25, 25), bool)
    mask[12, 12, 2:13] = True
    for step in range(arm + 1):
        mask[12, 12 - step, 12 + step] = mask[12, 12 + step, 12 + step] = True
    return mask


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("radius_mm", [0, 1, 2, 3.5])
def test_a_tube_along_an_axis_has_its_length_for_any_radius(tube: Draw, axis: int, radius_mm: float) -> None:
    direction = np.eye(3)[axis]
    mask = tube(length_mm=20, radius_mm=radius_mm, direction=direction, spacing_mm=(0.5, 0.5, 0.5))
    assert centreline_length_mm(mask, spacing_mm=(0.5, 0.5, 0.5)) == pytest.approx(20, rel=1e-12)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_tube_of_anisotropic_voxels_has_its_length(axis: int) -> None:
    spacing_mm = (2.0, 0.4, 0.7)
    tube = np.moveaxis(np.pad(np.ones((3, 3, 21), bool), 2), 2, axis)
    assert centreline_length_mm(tube, spacing_mm=spacing_mm) == pytest.approx(20 * spacing_mm[axis], rel=1e-12)


@pytest.mark.parametrize("spacing_mm", [CUBES, (0.6, 0.4, 0.4), (1.0, 0.5, 0.5)])
@pytest.mark.parametrize("voxels_thick", [3, 6])
def test_oblique_tubes_have_their_length_within_6_per_cent(
    tube: Draw, spacing_mm: tuple[float, ...], voxels_thick: int
) -> None:
    length_mm, radius_mm = 40 * max(spacing_mm), voxels_thick / 2 * max(spacing_mm)
    for way in DIRECTIONS:
        mask = tube(length_mm=length_mm, radius_mm=radius_mm, direction=way, spacing_mm=spacing_mm)
        assert centreline_length_mm(mask, spacing_mm=spacing_mm) == pytest.approx(length_mm, rel=0.06)


def test_a_thin_branch_has_the_sum_of_its_steps() -> None:
    # Ten straight steps and two arms of eight diagonal ones. All pairs of neighbours would also count the third sides
    # of triangles at the branch point.
    assert centreline_length_mm(branch(), spacing_mm=CUBES) == pytest.approx(10 + 16 * math.sqrt(2), rel=1e-12)
    # With rows of 3 mm and columns of 4 mm a diagonal step is 5 mm.
    assert centreline_length_mm(branch(), spacing_mm=(1, 3, 4)) == pytest.approx(10 * 4 + 16 * 5, rel=1e-12)


def test_a_thin_t_counts_no_diagonal_at_its_branch_point() -> None:
    t = np.zeros((1, 9, 17), bool)
    t[0, 0, :] = t[0, :, 8] = True
    # Thinning takes the corner voxel and cuts the two corners; every pair of neighbours would add two diagonals, 12 %.
    assert centreline_length_mm(t, spacing_mm=CUBES) == pytest.approx(16 + 8, rel=0.03)


def test_a_thick_branch_has_its_length_within_10_per_cent() -> None:
    thick = binary_dilation(branch(), np.ones((3, 3, 3)))
    # Three ends move out by a voxel: by 1 along the stem and by a diagonal along each arm.
    expected = 11 + 18 * math.sqrt(2)
    assert centreline_length_mm(thick, spacing_mm=CUBES) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("tube_radius", [1.5, 2.5, 4.0])
def test_a_torus_has_the_length_of_its_circle_within_5_per_cent(torus: Draw, tube_radius: float) -> None:
    ring = torus(ring_radius=12, tube_radius=tube_radius)
    assert centreline_length_mm(ring, spacing_mm=(0.5, 0.5, 0.5)) == pytest.approx(math.pi * 12, rel=0.05)


def test_lengths_of_two_vessels_are_added() -> None:
    two = np.zeros((9, 5, 21), bool)
    two[:3, 1:4, :] = two[6:, 1:4, 5:15] = True
    assert centreline_length_mm(two, spacing_mm=CUBES) == pytest.approx(20 + 9, rel=1e-12)


def test_a_cavity_changes_no_length() -> None:
    vessel = np.pad(np.ones((5, 5, 30), bool), 1)
    hollow = vessel.copy()
    hollow[3, 3, 14:17] = False
    assert centreline_length_mm(hollow, spacing_mm=CUBES) == centreline_length_mm(vessel, spacing_mm=CUBES)


def test_a_flat_mask_has_the_same_length_in_2d_and_3d() -> None:
    diagonal = np.eye(11, dtype=bool)
    assert centreline_length_mm(diagonal, spacing_mm=(3, 4)) == pytest.approx(50, rel=1e-12)
    assert centreline_length_mm(diagonal[None], spacing_mm=(7, 3, 4)) == pytest.approx(50, rel=1e-12)
    assert centreline_length_mm(diagonal[:, None], spacing_mm=(3, 7, 4)) == pytest.approx(50, rel=1e-12)


def test_a_hole_in_a_flat_mask_is_a_loop() -> None:
    ring = np.ones((41, 41), bool)
    ring[1:-1, 1:-1] = False
    # A square of four sides of 40 steps; thinning and smoothing round its four corners.
    assert centreline_length_mm(ring, spacing_mm=(1, 1)) == pytest.approx(160, rel=0.03)


def test_length_scales_with_the_spacing(tube: Draw) -> None:
    mask = tube(length_mm=30, radius_mm=2, direction=(3, 2, 4), spacing_mm=CUBES)
    once = centreline_length_mm(mask, spacing_mm=CUBES)
    assert centreline_length_mm(mask, spacing_mm=(2, 2, 2)) == pytest.approx(2 * once, rel=1e-12)


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1, 2)])
def test_flipping_a_mask_changes_its_length_by_little(tube: Draw, axes: tuple[int, ...]) -> None:
    mask = tube(length_mm=40, radius_mm=3, direction=(3, 2, 4), spacing_mm=CUBES)
    flipped = centreline_length_mm(np.flip(mask, axes), spacing_mm=CUBES)
    assert flipped == pytest.approx(centreline_length_mm(mask, spacing_mm=CUBES), rel=0.05)


EMPTY, VOXEL, SHORT, LONG = np.zeros((4, 3, 3, 21), bool)
VOXEL[1, 1, 4] = SHORT[1, 1, :16] = LONG[1, 1, :] = True


def test_an_empty_mask_and_a_single_voxel_have_no_length() -> None:
    assert centreline_length_mm(EMPTY, spacing_mm=CUBES) == centreline_length_mm(VOXEL, spacing_mm=CUBES) == 0.0


@pytest.mark.parametrize(
    ("prediction", "label", "expected"),
    [
        (SHORT, LONG, 15 / 20 - 1),
        (LONG, SHORT, 20 / 15 - 1),
        (LONG, LONG, 0.0),
        (EMPTY, LONG, -1.0),
        (EMPTY, VOXEL, -1.0),
        (VOXEL, LONG, -1.0),
        (LONG, EMPTY, math.inf),
        (VOXEL, EMPTY, math.inf),
        (LONG, VOXEL, math.inf),
        (np.roll(VOXEL, 2), VOXEL, 0.0),
        (EMPTY, EMPTY, math.nan),
    ],
)
def test_the_length_error_is_relative_to_the_label(prediction: np.ndarray, label: np.ndarray, expected: float) -> None:
    error = centreline_length_error(prediction, label, spacing_mm=(1, 1, 0.5))
    assert error == pytest.approx(expected, rel=1e-12, nan_ok=True)
