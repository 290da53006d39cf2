"""Promises of a skeleton: thin, inside, equal topology, in the middle."""

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
def test_a_skeleton_is_inside_the_mask_and_has_equal_betti_numbers(mask: np.ndarray) -> None:
    skeleton = skeletonize(mask)
    assert not (skeleton & ~mask).any()
    assert betti_numbers(skeleton) == betti_numbers(mask)


@given(st.one_of(noise, flat_noise))
def test_the_skeleton_of_a_skeleton_is_itself(mask: np.ndarray) -> None:
    skeleton = skeletonize(mask)
    np.testing.assert_array_equal(skeletonize(skeleton), skeleton)


@given(noise)
def test_only_ends_can_be_removed_from_a_skeleton(mask: np.ndarray) -> None:
    skeleton = skeletonize(mask)
    for voxel, count in zip(np.argwhere(skeleton), neighbours(skeleton), strict=True):
        without = skeleton.copy()
        without[tuple(voxel)] = False
        assert count == 1 or betti_numbers(without) != betti_numbers(skeleton)


@given(flat_noise, st.integers(0, 2))
def test_the_skeleton_of_a_flat_mask_is_equal_in_2d_and_3d(mask: np.ndarray, axis: int) -> None:
    skeleton = skeletonize(np.expand_dims(mask, axis))
    np.testing.assert_array_equal(skeleton.squeeze(axis), skeletonize(mask))


@given(noise)
def test_empty_space_around_a_mask_changes_nothing(mask: np.ndarray) -> None:
    width = ((1, 2), (3, 0), (0, 1))
    np.testing.assert_array_equal(skeletonize(np.pad(mask, width)), np.pad(skeletonize(mask), width))


@given(st.one_of(noise, flat_noise))
def test_the_order_in_memory_changes_nothing(mask: np.ndarray) -> None:
    # Arrays of NIfTI files are in Fortran order, of which a flat view would be a copy.
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
    unit = np.array([3.0, 2.0, 4.0]) / np.sqrt(29)
    mask = tube(length_mm=40, radius_mm=radius, direction=unit, spacing_mm=(1, 1, 1))
    skeleton = skeletonize(mask)
    assert sorted(neighbours(skeleton))[:3] == [1, 1, 2]
    assert neighbours(skeleton).max() == 2
    # The mask's centre of mass is on the axis; ends at flat, oblique faces may be off the axis.
    offsets = np.argwhere(skeleton) - np.argwhere(mask).mean(axis=0)
    along = offsets @ unit
    across = np.linalg.norm(offsets - along[:, None] * unit, axis=1)
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


@pytest.mark.parametrize("value", [False, True])
@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 5)])
def test_only_an_empty_mask_has_an_empty_skeleton_and_the_mask_is_not_changed(
    shape: tuple[int, ...], value: bool
) -> None:
    mask = np.full(shape, value)
    assert skeletonize(mask).any() == value
    assert (mask == value).all()
