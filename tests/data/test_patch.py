"""Position and reading of windows."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from uumamba.data.patch import choose_start, read_window
from uumamba.runtime.seeds import generator_for

lengths = st.integers(1, 12)


@given(length=lengths, available=lengths, seed=st.integers(0, 9), data=st.data())
def test_a_patch_is_inside_and_contains_its_centre_or_is_centred_on_a_smaller_case(
    length: int, available: int, seed: int, data: st.DataObject
) -> None:
    centre = data.draw(st.one_of(st.none(), st.integers(0, available - 1)))
    around = None if centre is None else (centre,)
    (start,) = choose_start(generator_for(seed), size=(length,), shape=(available,), centre=around)
    assert centre is None or start <= centre < start + length
    if length <= available:
        assert 0 <= start <= available - length
    else:
        assert -start - (length - available + start) in (0, -1)


def test_every_start_is_equally_likely() -> None:
    generator = generator_for(0)
    starts = [choose_start(generator, size=(3,), shape=(6,))[0] for _ in range(2000)]
    for start in range(4):
        assert abs(starts.count(start) / 2000 - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5


@given(st.tuples(st.integers(-6, 6), st.integers(-6, 6)), st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_a_window_equals_the_slice_of_the_padded_array(
    refused: Any, start: tuple[int, int], size: tuple[int, int]
) -> None:
    array = np.arange(2 * 7 * 8).reshape(2, 7, 8)
    if any(
        first + length <= 0 or first >= available for first, length, available in zip(start, size, (7, 8), strict=True)
    ):
        with refused("start", got=start):
            read_window(array, start, size, fill=-1)
        return
    padded = np.pad(array, ((0, 0), (10, 20), (10, 20)), constant_values=-1)
    window = tuple(slice(10 + first, 10 + first + length) for first, length in zip(start, size, strict=True))
    assert np.array_equal(read_window(array, start, size, fill=-1), padded[(slice(None), *window)])


def test_outside_is_the_smallest_value_of_each_channel_and_a_window_is_a_copy() -> None:
    array = np.array([[3.0, 5.0, 1.0], [7.0, 6.0, 8.0]], dtype=np.float16)
    assert read_window(array, (-1,), (3,)).tolist() == [[3.0, 3.0, 5.0], [6.0, 7.0, 6.0]]
    read_window(array, (0,), (2,))[...] = 1
    assert array[0, 0] == 3
