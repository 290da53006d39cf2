"""Centreline lengths of shapes whose length is known, and what becomes of empty and odd ones."""

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
    """A thin Y: a stem of ten steps along the last axis, and two arms of diagonal steps."""
    mask = np.zeros((25, 25, 25), bool)
    mask[12, 12, 2:13] = True
    for step in range(arm + 1):
        mask[12, 12 - step, 12 + step] = mask[12, 12 + step, 12 + step] = True
    return mask


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("radius_mm", [0, 1, 2, 3.5])
def test_a_tube_along_an_axis_has_its_length_whatever_its_radius(tube: Draw, axis: int, radius_mm: float) -> None:
    direction = np.eye(3)[axis]
    mask = tube(length_mm=20, radius_mm=radius_mm, direction=direction, spacing_mm=(0.5, 0.5, 0.5))
    assert centreline_length_mm(mask, spacing_mm=(0.5, 0.5, 0.5)) == pytest.approx(20, rel=1e-12)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_tube_of_anisotropic_voxels_is_as_long_as_its_voxels(axis: int) -> None:
    spacing_mm = (2.0, 0.4, 0.7)
    tube = np.moveaxis(np.pad(np.ones((3, 3, 21), bool), 2), 2, axis)
    assert centreline_length_mm(tube, spacing_mm=spacing_mm) == pytest.approx(20 * spacing_mm[axis], rel=1e-12)


@pytest.mark.parametrize("spacing_mm", [CUBES, (0.6, 0.4, 0.4), (1.0, 0.5, 0.5)])
@pytest.mark.parametrize("voxels_thick", [3, 6])
def test_oblique_tubes_have_their_length_within_six_per_cent(
    tube: Draw, spacing_mm: tuple[float, ...], voxels_thick: int
) -> None:
    length_mm, radius_mm = 40 * max(spacing_mm), voxels_thick / 2 * max(spacing_mm)
    for way in DIRECTIONS:
        mask = tube(length_mm=length_mm, radius_mm=radius_mm, direction=way, spacing_mm=spacing_mm)
        assert centreline_length_mm(mask, spacing_mm=spacing_mm) == pytest.approx(length_mm, rel=0.06)


def test_a_thin_branch_has_the_sum_of_its_steps() -> None:
    # Ten straight steps and two arms of eight diagonal ones. The two first steps of the arms are no third side of
    # a triangle with the stem's last step: that is what counting every pair of neighbours would add.
    assert centreline_length_mm(branch(), spacing_mm=CUBES) == pytest.approx(10 + 16 * math.sqrt(2), rel=1e-12)
    # With rows of 3 mm and columns of 4 mm a diagonal step is 5 mm.
    assert centreline_length_mm(branch(), spacing_mm=(1, 3, 4)) == pytest.approx(10 * 4 + 16 * 5, rel=1e-12)


def test_a_thin_t_counts_no_diagonal_at_its_branch_point() -> None:
    t = np.zeros((1, 9, 17), bool)
    t[0, 0, :] = t[0, :, 8] = True
    # Thinning takes the corner voxel and cuts the two corners; every pair of neighbours would add two diagonals, 12 %.
    assert centreline_length_mm(t, spacing_mm=CUBES) == pytest.approx(16 + 8, rel=0.03)


def test_a_thick_branch_is_as_long_as_its_voxels_allow() -> None:
    thick = binary_dilation(branch(), np.ones((3, 3, 3)))
    # Three ends move out by a voxel: by 1 along the stem and by a diagonal along each arm.
    expected = 11 + 18 * math.sqrt(2)
    assert centreline_length_mm(thick, spacing_mm=CUBES) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("tube_radius", [1.5, 2.5, 4.0])
def test_a_torus_is_as_long_as_its_circle_within_five_per_cent(torus: Draw, tube_radius: float) -> None:
    ring = torus(ring_radius=12, tube_radius=tube_radius)
    assert centreline_length_mm(ring, spacing_mm=(0.5, 0.5, 0.5)) == pytest.approx(math.pi * 12, rel=0.05)


def test_two_vessels_are_as_long_as_both() -> None:
    two = np.zeros((9, 5, 21), bool)
    two[:3, 1:4, :] = two[6:, 1:4, 5:15] = True
    assert centreline_length_mm(two, spacing_mm=CUBES) == pytest.approx(20 + 9, rel=1e-12)


def test_a_bubble_inside_a_vessel_changes_nothing() -> None:
    vessel = np.pad(np.ones((5, 5, 30), bool), 1)
    bubble = vessel.copy()
    bubble[3, 3, 14:17] = False
    assert centreline_length_mm(bubble, spacing_mm=CUBES) == centreline_length_mm(vessel, spacing_mm=CUBES)


def test_a_flat_mask_has_its_length_in_the_plane() -> None:
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


def test_empty_space_around_a_mask_changes_nothing(tube: Draw) -> None:
    mask = tube(length_mm=30, radius_mm=2, direction=(3, 2, 4), spacing_mm=CUBES)
    padded = np.pad(mask, ((1, 0), (0, 2), (3, 3)))
    assert centreline_length_mm(padded, spacing_mm=CUBES) == centreline_length_mm(mask, spacing_mm=CUBES)


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1, 2)])
def test_flipping_a_mask_changes_its_length_by_little(tube: Draw, axes: tuple[int, ...]) -> None:
    mask = tube(length_mm=40, radius_mm=3, direction=(3, 2, 4), spacing_mm=CUBES)
    flipped = centreline_length_mm(np.flip(mask, axes), spacing_mm=CUBES)
    assert flipped == pytest.approx(centreline_length_mm(mask, spacing_mm=CUBES), rel=0.05)


def test_an_empty_mask_and_a_lone_voxel_have_no_length() -> None:
    voxel = np.zeros((3, 3, 3), bool)
    assert centreline_length_mm(voxel, spacing_mm=CUBES) == 0.0
    voxel[1, 1, 1] = True
    assert centreline_length_mm(voxel, spacing_mm=CUBES) == 0.0


def test_the_error_is_negative_where_the_prediction_is_too_short() -> None:
    label, prediction = np.zeros((3, 3, 21), bool), np.zeros((3, 3, 21), bool)
    label[1, 1, :] = prediction[1, 1, :16] = True
    assert centreline_length_error(prediction, label, spacing_mm=(1, 1, 0.5)) == pytest.approx(15 / 20 - 1, rel=1e-12)
    assert centreline_length_error(label, prediction, spacing_mm=(1, 1, 0.5)) == pytest.approx(20 / 15 - 1, rel=1e-12)
    assert centreline_length_error(label, label, spacing_mm=(1, 1, 0.5)) == 0.0


def test_the_error_of_a_total_miss_is_all_of_the_length_or_infinite() -> None:
    label = np.zeros((3, 3, 9), bool)
    empty = label.copy()
    label[1, 1, :] = True
    assert centreline_length_error(empty, label, spacing_mm=CUBES) == -1.0
    assert centreline_length_error(label, empty, spacing_mm=CUBES) == math.inf
    assert math.isnan(centreline_length_error(empty, empty, spacing_mm=CUBES))


def test_the_error_against_a_label_without_length_is_zero_or_infinite() -> None:
    voxel, line = np.zeros((3, 3, 9), bool), np.zeros((3, 3, 9), bool)
    voxel[1, 1, 4] = line[1, 1, 2:6] = True
    assert centreline_length_error(np.roll(voxel, 2), voxel, spacing_mm=CUBES) == 0.0
    assert centreline_length_error(line, voxel, spacing_mm=CUBES) == math.inf
    assert centreline_length_error(voxel, line, spacing_mm=CUBES) == -1.0
