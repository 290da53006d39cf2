"""Placing and reading windows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uumamba.data.patch import choose_start, read_window
from uumamba.runtime.seeds import generator_for

lengths = st.integers(1, 12)


@given(st.lists(st.tuples(lengths, lengths), min_size=1, max_size=3), st.integers(0, 99))
def test_a_patch_lies_inside_where_it_fits_and_is_centred_where_not(pairs: list[tuple[int, int]], seed: int) -> None:
    size, shape = zip(*pairs, strict=True)
    for start, length, available in zip(
        choose_start(generator_for(seed), size=size, shape=shape), size, shape, strict=True
    ):
        if length <= available:
            assert 0 <= start <= available - length
        else:
            before, behind = -start, length - available + start
            assert before - behind in (0, -1)


@given(st.tuples(lengths, lengths), st.data())
def test_a_patch_around_a_voxel_holds_it(pair: tuple[int, int], data: st.DataObject) -> None:
    size, available = pair
    voxel = data.draw(st.integers(0, available - 1))
    (start,) = choose_start(generator_for(0), size=(size,), shape=(available,), centre=(voxel,))
    assert start <= voxel < start + size


def test_a_patch_around_a_voxel_far_from_the_border_is_centred_on_it() -> None:
    assert choose_start(generator_for(0), size=(4, 5), shape=(99, 99), centre=(50, 50)) == (48, 48)


def test_every_start_comes_equally_often() -> None:
    generator = generator_for(0)
    starts = [choose_start(generator, size=(3,), shape=(6,))[0] for _ in range(2000)]
    for start in range(4):
        assert abs(starts.count(start) / 2000 - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5


@given(st.tuples(st.integers(-6, 6), st.integers(-6, 6)), st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_a_window_equals_the_slice_of_the_padded_array(start: tuple[int, int], size: tuple[int, int]) -> None:
    array = np.arange(2 * 7 * 8).reshape(2, 7, 8)
    if any(
        first + length <= 0 or first >= available for first, length, available in zip(start, size, (7, 8), strict=True)
    ):
        with pytest.raises(ValueError, match="misses an array of shape"):
            read_window(array, start, size, fill=-1)
        return
    padded = np.pad(array, ((0, 0), (10, 20), (10, 20)), constant_values=-1)
    window = tuple(slice(10 + first, 10 + first + length) for first, length in zip(start, size, strict=True))
    assert np.array_equal(read_window(array, start, size, fill=-1), padded[(slice(None), *window)])


def test_outside_stands_the_smallest_value_read_of_each_channel() -> None:
    array = np.array([[3.0, 5.0, 1.0], [7.0, 6.0, 8.0]], dtype=np.float16)
    assert read_window(array, (-1,), (3,)).tolist() == [[3.0, 3.0, 5.0], [6.0, 7.0, 6.0]]


def test_a_window_is_a_copy() -> None:
    array = np.zeros((4, 4))
    read_window(array, (0, 0), (2, 2))[...] = 1
    assert not array.any()
