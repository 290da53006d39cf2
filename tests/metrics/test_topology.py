"""Betti numbers, counted by hand or computed by linear algebra."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from uumamba.metrics import betti_errors, betti_numbers
from uumamba.metrics.topology import fill_cavities

Draw = Callable[..., np.ndarray]
noise = st.one_of(
    arrays(np.bool_, (3, 4, 3), elements=st.booleans(), fill=st.nothing()),
    arrays(np.bool_, (5, 6), elements=st.booleans(), fill=st.nothing()),
)


def betti_numbers_by_ranks(mask: np.ndarray) -> tuple[int, ...]:
    """Compute Betti numbers from their definition.

    They follow from the ranks, over two elements, of the boundary matrices of the closed voxels' cells. Cells are on a
    grid of twice the resolution: odd coordinates are inside a voxel, even ones between two voxels.
    """
    cells: set[tuple[int, ...]] = set()
    for voxel in np.argwhere(mask):
        cells.update(itertools.product(*((2 * n, 2 * n + 1, 2 * n + 2) for n in voxel.tolist())))
    by_dimension = [[c for c in sorted(cells) if sum(n % 2 for n in c) == d] for d in range(mask.ndim + 1)]
    ranks = [0, *(rank_of_boundary(cells_of_one) for cells_of_one in by_dimension[1:]), 0]
    betti = [len(by_dimension[d]) - ranks[d] - ranks[d + 1] for d in range(mask.ndim + 1)]
    assert betti[mask.ndim] == 0
    return tuple(betti[: mask.ndim])


def rank_of_boundary(cells: list[tuple[int, ...]]) -> int:
    reduced: dict[tuple[int, ...], frozenset[tuple[int, ...]]] = {}
    for cell in cells:
        faces = frozenset(
            (*cell[:axis], n + side, *cell[axis + 1 :]) for axis, n in enumerate(cell) if n % 2 for side in (-1, 1)
        )
        while faces and max(faces) in reduced:
            faces = faces ^ reduced[max(faces)]
        if faces:
            reduced[max(faces)] = faces
    return len(reduced)


@given(noise)
def test_betti_numbers_equal_the_homology_of_the_closed_voxels(mask: np.ndarray) -> None:
    assert betti_numbers(mask) == betti_numbers_by_ranks(mask)


def test_a_torus_has_one_tunnel_and_its_surface_two_tunnels_and_a_cavity(torus: Draw) -> None:
    skin = torus(ring_radius=8, tube_radius=4)
    assert betti_numbers(skin) == (1, 1, 0)
    inner = torus(ring_radius=8, tube_radius=2)
    skin[2:-2, 2:-2, 2:-2] &= ~inner
    assert betti_numbers(skin) == (1, 2, 1)


def test_two_vessels_are_two_parts() -> None:
    two = np.zeros((5, 5, 9), bool)
    two[1, 1, 1:8] = two[3, 3, 1:8] = True
    assert betti_numbers(two) == (2, 0, 0)


def test_a_hollow_sphere_has_a_cavity_until_it_is_pierced() -> None:
    distance = np.linalg.norm(np.stack(np.meshgrid(*[np.arange(-7, 8)] * 3, indexing="ij")), axis=0)
    hollow = (distance <= 6) & (distance >= 4)
    assert betti_numbers(hollow) == (1, 0, 1)
    hollow[7, 7, 8:] = False
    assert betti_numbers(hollow) == (1, 0, 0)
    hollow[7, 7, :7] = False
    assert betti_numbers(hollow) == (1, 1, 0)


def test_a_frame_of_a_cube_has_five_tunnels() -> None:
    frame = np.ones((5, 5, 5), bool)
    frame[1:4, 1:4, :] = frame[1:4, :, 1:4] = frame[:, 1:4, 1:4] = False
    # Twelve edges and eight corners: 12 - 8 + 1 loops.
    assert betti_numbers(frame) == (1, 5, 0)


def test_foreground_is_connected_by_corners_and_background_by_faces() -> None:
    diagonal = np.zeros((2, 2, 2), bool)
    diagonal[0, 0, 0] = diagonal[1, 1, 1] = True
    assert betti_numbers(diagonal) == (1, 0, 0)
    # Six faces without the cube's edges and corners still close a cavity, as they touch along edges.
    octahedron = np.zeros((3, 3, 3), bool)
    octahedron[1, 1, ::2] = octahedron[1, ::2, 1] = octahedron[::2, 1, 1] = True
    assert betti_numbers(octahedron) == (1, 0, 1)


def test_a_hole_in_a_flat_mask_is_a_tunnel_in_2d_and_3d() -> None:
    eight = np.ones((3, 5), bool)
    eight[1, 1] = eight[1, 3] = False
    assert betti_numbers(eight) == (1, 2)
    assert betti_numbers(eight[None]) == (1, 2, 0)


@given(noise)
def test_betti_numbers_do_not_depend_on_direction_or_padding(mask: np.ndarray) -> None:
    expected = betti_numbers(mask)
    assert betti_numbers(np.flip(mask)) == expected
    assert betti_numbers(mask.T) == expected
    assert betti_numbers(np.pad(mask, 2)) == expected


def test_an_empty_mask_has_no_parts() -> None:
    assert betti_numbers(np.zeros((2, 3, 4), bool)) == (0, 0, 0)
    assert betti_numbers(np.zeros((3, 4), bool)) == (0, 0)


def test_betti_errors_are_absolute_differences(torus: Draw) -> None:
    ring = torus(ring_radius=7, tube_radius=2)
    pieces = ring.copy()
    pieces[:, ring.shape[1] // 2] = False
    assert betti_numbers(pieces) == (2, 0, 0)
    assert betti_errors(pieces, ring) == (1.0, 1.0, 0.0)
    assert betti_errors(ring, pieces) == (1.0, 1.0, 0.0)
    assert betti_errors(ring, ring) == (0.0, 0.0, 0.0)
    assert betti_errors(np.zeros_like(ring), ring) == (1.0, 1.0, 0.0), "the numbers of the label for a total miss"


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
def test_betti_errors_of_two_empty_masks_are_nan(shape: tuple[int, ...]) -> None:
    errors = betti_errors(np.zeros(shape, bool), np.zeros(shape, bool))
    assert len(errors) == len(shape)
    assert all(math.isnan(error) for error in errors)


@given(arrays(np.bool_, (4, 4, 4), elements=st.booleans(), fill=st.nothing()))
def test_filling_cavities_adds_voxels_until_no_cavity_is_left(mask: np.ndarray) -> None:
    filled = fill_cavities(mask)
    assert not (mask & ~filled).any()
    assert np.array_equal(filled, mask) == (betti_numbers(mask)[2] == 0)
    assert betti_numbers(filled)[2] == 0


def test_filling_cavities_leaves_tunnels_open(torus: Draw) -> None:
    ring = torus(ring_radius=7, tube_radius=2)
    bubble, middle = ring.copy(), ring.shape[0] // 2
    bubble[middle, middle, middle + 7] = False
    assert betti_numbers(bubble) == (1, 1, 1)
    np.testing.assert_array_equal(fill_cavities(bubble), ring)
