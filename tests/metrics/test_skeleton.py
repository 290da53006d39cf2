"""What a skeleton is: thin, inside, of the mask's topology, along its middle."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import binary_dilation, correlate

from uumamba.metrics import betti_numbers, skeletonize

Draw = Callable[..., np.ndarray]
noise = arrays(np.bool_, st.tuples(*[st.integers(1, 6)] * 3), elements=st.booleans(), fill=st.nothing())
flat_noise = arrays(np.bool_, st.tuples(*[st.integers(1, 9)] * 2), elements=st.booleans(), fill=st.nothing())


def neighbours(mask: np.ndarray) -> np.ndarray:
    """Number of true neighbours of each voxel of the mask."""
    return correlate(mask.astype(int), np.ones((3,) * mask.ndim, int), mode="constant")[mask] - 1


@given(st.one_of(noise, flat_noise))
def test_a_skeleton_lies_inside_and_has_the_same_parts_tunnels_and_cavities(mask: np.ndarray) -> None:
    skeleton = skeletonize(mask)
    assert not (skeleton & ~mask).any()
    assert betti_numbers(skeleton) == betti_numbers(mask)


@given(st.one_of(noise, flat_noise))
def test_the_skeleton_of_a_skeleton_is_itself(mask: np.ndarray) -> None:
    skeleton = skeletonize(mask)
    np.testing.assert_array_equal(skeletonize(skeleton), skeleton)


@given(noise)
def test_no_voxel_but_an_end_can_be_taken_from_a_skeleton(mask: np.ndarray) -> None:
    skeleton = skeletonize(mask)
    for voxel, count in zip(np.argwhere(skeleton), neighbours(skeleton), strict=True):
        without = skeleton.copy()
        without[tuple(voxel)] = False
        assert count == 1 or betti_numbers(without) != betti_numbers(skeleton)


@given(flat_noise, st.integers(0, 2))
def test_a_flat_mask_is_thinned_alike_in_two_and_in_three_dimensions(mask: np.ndarray, axis: int) -> None:
    in_space = skeletonize(np.expand_dims(mask, axis))
    np.testing.assert_array_equal(in_space.squeeze(axis), skeletonize(mask))


@given(noise)
def test_empty_space_around_a_mask_changes_nothing(mask: np.ndarray) -> None:
    padded = skeletonize(np.pad(mask, ((1, 2), (3, 0), (0, 1))))
    np.testing.assert_array_equal(padded, np.pad(skeletonize(mask), ((1, 2), (3, 0), (0, 1))))


@given(st.one_of(noise, flat_noise))
def test_the_order_in_memory_changes_nothing(mask: np.ndarray) -> None:
    """NIfTI files are read in Fortran's order, of which a flat view would be a copy."""
    np.testing.assert_array_equal(skeletonize(np.asfortranarray(mask)), skeletonize(mask))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_tube_of_odd_width_becomes_its_axis(axis: int) -> None:
    tube = np.zeros((5, 5, 20), bool)
    tube[1:4, 1:4, 2:18] = True
    skeleton = np.moveaxis(skeletonize(np.moveaxis(tube, 2, axis)), axis, 2)
    assert skeleton[2, 2, 3:17].all()
    assert skeleton.sum() == skeleton[2, 2].sum()


@pytest.mark.parametrize("radius", [1.5, 2.5, 4.0])
def test_an_oblique_tube_becomes_one_curve_with_two_ends_near_its_axis(tube: Draw, radius: float) -> None:
    way = np.array([3.0, 2.0, 4.0]) / np.sqrt(29)
    mask = tube(length_mm=40, radius_mm=radius, direction=way, spacing_mm=(1, 1, 1))
    skeleton = skeletonize(mask)
    assert sorted(neighbours(skeleton))[:3] == [1, 1, 2]
    assert neighbours(skeleton).max() == 2
    # The mask's centre of mass lies on the axis; ends of flat, slanting faces may lie off it.
    offsets = np.argwhere(skeleton) - np.argwhere(mask).mean(axis=0)
    along = offsets @ way
    across = np.linalg.norm(offsets - along[:, None] * way, axis=1)
    assert across[np.abs(along) < 20 - 2 * radius].max() < 1.5


def test_a_thick_branching_vessel_has_a_skeleton_with_three_ends() -> None:
    centre = np.zeros((25, 25, 25), bool)
    centre[12, 12, 2:13] = True
    for step in range(10):
        centre[12, 12 - step, 12 + step] = centre[12, 12 + step, 12 + step] = True
    skeleton = skeletonize(binary_dilation(centre, np.ones((3, 3, 3))))
    assert np.count_nonzero(neighbours(skeleton) == 1) == 3


def test_a_torus_becomes_a_closed_curve_without_ends(torus: Draw) -> None:
    skeleton = skeletonize(torus(ring_radius=10, tube_radius=3))
    assert (neighbours(skeleton) == 2).all()
    assert betti_numbers(skeleton) == (1, 1, 0)


@pytest.mark.parametrize(
    "axes", list(itertools.chain.from_iterable(itertools.combinations(range(3), n) for n in (1, 2, 3)))
)
def test_flipping_a_mask_moves_its_skeleton_by_little(tube: Draw, axes: tuple[int, ...]) -> None:
    mask = tube(length_mm=40, radius_mm=3, direction=(3, 2, 4), spacing_mm=(1, 1, 1))
    skeleton, flipped = skeletonize(mask), np.flip(skeletonize(np.flip(mask, axes)), axes)
    assert betti_numbers(flipped) == betti_numbers(skeleton)
    beyond_a_neighbour = flipped & ~binary_dilation(skeleton, np.ones((3, 3, 3)))
    assert np.count_nonzero(beyond_a_neighbour) <= 2


def test_the_mask_itself_is_left_as_it_was() -> None:
    mask = np.ones((3, 4, 5), bool)
    skeletonize(mask)
    assert mask.all()


def test_an_empty_mask_has_an_empty_skeleton() -> None:
    assert not skeletonize(np.zeros((3, 4, 5), bool)).any()
    assert not skeletonize(np.zeros((4, 5), bool)).any()
