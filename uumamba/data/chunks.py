"""Operations on large arrays in pieces of a few million voxels.

No temporary array is as large as the volume.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

CHUNK_VOXELS = 2**22


def chunks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield flat pieces of an array in memory order.

    The pieces are views if the array is stored without gaps.
    """
    flat = array.ravel(order="K")
    for start in range(0, flat.size, CHUNK_VOXELS):
        yield flat[start : start + CHUNK_VOXELS]


def convert(
    array: NDArray[Any], dtype: DTypeLike, change: Callable[[NDArray[Any]], NDArray[Any]] | None = None
) -> NDArray[Any]:
    """Convert an array to another dtype, in the same memory order.

    Args:
        array: array of any memory order.
        dtype: dtype of the result.
        change: function that is applied to each piece before the conversion.

    Example:
        >>> convert(np.array([0.5, 1.5]), np.uint8, lambda part: part * 2).tolist()
        [1, 3]
    """
    result = np.empty_like(array, dtype=dtype)
    for source, target in zip(chunks(array), chunks(result), strict=True):
        target[:] = source if change is None else change(source)
    return result


def spans(size: int, plane_voxels: int) -> Iterator[tuple[int, int]]:
    """Yield the bounds ``(first, last)`` of slabs of planes.

    Each slab has about :data:`CHUNK_VOXELS` voxels.

    Example:
        >>> list(spans(5, CHUNK_VOXELS // 2))
        [(0, 2), (2, 4), (4, 5)]
    """
    thickness = max(1, CHUNK_VOXELS // max(1, plane_voxels))
    for first in range(0, size, thickness):
        yield first, min(first + thickness, size)


def find_distinct_values(array: NDArray[Any]) -> NDArray[Any]:
    """Find the distinct values of an array, in ascending order.

    Example:
        >>> find_distinct_values(np.array([[3, -1], [3, 0]], dtype=np.int16)).tolist()
        [-1, 0, 3]
    """
    if array.dtype.kind not in "iu" or array.dtype.itemsize > 4:
        return np.unique(array)
    low, high = int(array.min()), int(array.max())
    if high - low >= 2**16:
        return np.unique(array)
    is_present = np.zeros(high - low + 1, dtype=np.bool_)  # ten times as fast as sorting
    for part in chunks(array):
        rest = part[part != 0]  # most voxels of a label map are 0
        is_present[rest.astype(np.int64) - low] = True
        if rest.size < part.size:
            is_present[-low] = True
    return np.flatnonzero(is_present) + low
