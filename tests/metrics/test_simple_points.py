import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from uumamba.metrics import betti_numbers
from uumamba.metrics.simple_points import CENTRE, OFFSETS, has_two_neighbours, is_simple

cubes = arrays(np.bool_, (3, 3, 3), elements=st.booleans(), fill=st.nothing())


def code_of(cube: np.ndarray) -> np.ndarray:
    bits = [bit for bit, voxel in enumerate(cube.reshape(-1)) if voxel and bit != CENTRE]
    return np.array([sum(1 << bit for bit in bits)], np.uint32)


def test_bits_are_neighbours_in_array_order() -> None:
    assert [tuple(offset) for offset in np.argwhere(np.ones((3, 3, 3))) - 1] == list(OFFSETS)


@given(cubes)
def test_a_voxel_is_simple_if_its_neighbours_are_one_part_without_tunnel_or_cavity(cube: np.ndarray) -> None:
    # With the centre every voxel of the cube touches one other, so the cube has Betti numbers (1, 0, 0).
    cube[1, 1, 1] = False
    assert is_simple(code_of(cube)).tolist() == [betti_numbers(cube) == (1, 0, 0)]


@given(arrays(np.bool_, (3, 3), elements=st.booleans(), fill=st.nothing()))
def test_the_rule_for_a_flat_mask_is_that_of_eight_and_four_neighbours(square: np.ndarray) -> None:
    square[1, 1] = False
    cube = np.zeros((3, 3, 3), bool)
    cube[1] = square
    assert is_simple(code_of(cube)).tolist() == [betti_numbers(square) == (1, 0)]


def test_a_single_voxel_is_neither_simple_nor_inside_a_curve() -> None:
    single = np.zeros(1, np.uint32)
    assert not is_simple(single).any()
    assert not has_two_neighbours(single).any()


def test_an_end_point_has_one_neighbour_at_any_place() -> None:
    one = np.array([1 << bit for bit in range(27) if bit != CENTRE], np.uint32)
    assert not has_two_neighbours(one).any()
    assert has_two_neighbours(one | np.roll(one, 1)).all()
