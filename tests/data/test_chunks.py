"""Operations in pieces equal those on the array, in any memory order."""

import numpy as np
import pytest

from uumamba.data import chunks
from uumamba.data.chunks import CHUNK_VOXELS, convert, find_distinct_values, spans


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).integers(-5, 300, (9, 8, 7)).astype(np.int16)


@pytest.fixture(params=[5, CHUNK_VOXELS])
def _voxels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_VOXELS", request.param)


@pytest.mark.usefixtures("_voxels")
@pytest.mark.parametrize("order", ["as is", "fortran", "flipped", "cropped"])
def test_a_conversion_in_pieces_equals_that_of_the_array(array: np.ndarray, order: str) -> None:
    stored = {
        "as is": array,
        "fortran": np.asfortranarray(array),
        "flipped": array[::-1, :, ::-1],
        "cropped": array[1:5, :, 2:],
    }[order]
    assert np.array_equal(convert(stored, np.float32, lambda part: part * 2.5), (stored * 2.5).astype(np.float32))
    assert convert(stored, np.int32).dtype == np.int32


@pytest.mark.usefixtures("_voxels")
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", ">i2", "uint16", "int64", "uint64", "float32"])
def test_distinct_values_equal_numpys(array: np.ndarray, dtype: str) -> None:
    stored = array.astype(dtype)
    assert np.array_equal(find_distinct_values(stored), np.unique(stored))
    assert np.array_equal(find_distinct_values(stored[stored != 0]), np.unique(stored[stored != 0]))


def test_distinct_values_of_a_large_range_are_found() -> None:
    assert find_distinct_values(np.array([-(2**31), 2**31 - 1], dtype=np.int32)).tolist() == [-(2**31), 2**31 - 1]


@pytest.mark.parametrize("plane_voxels", [1, CHUNK_VOXELS // 3, 10 * CHUNK_VOXELS])
def test_spans_cover_every_plane_once_and_hold_at_least_one(plane_voxels: int) -> None:
    found = list(spans(7, plane_voxels))
    assert [plane for first, last in found for plane in range(first, last)] == list(range(7))
    assert found[0][1] == {1: 7, CHUNK_VOXELS // 3: 3}.get(plane_voxels, 1)
