"""Large arrays, a few million voxels at a time.

No temporary is as large as the volume.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

CHUNK_VOXELS = 2**22


def chunks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield flat pieces of an array in its memory order.

    They are views where it is stored without gaps.
    """
    flat = array.ravel(order="K")
    for start in range(0, flat.size, CHUNK_VOXELS):
        yield flat[start : start + CHUNK_VOXELS]


def converted(
    array: NDArray[Any], dtype: DTypeLike, change: Callable[[NDArray[Any]], NDArray[Any]] | None = None
) -> NDArray[Any]:
    """Convert an array to another type, in the same memory order.

    ``change`` is applied to the values.

    Example:
        >>> converted(np.array([0.5, 1.5]), np.uint8, lambda part: part * 2).tolist()
        [1, 3]
    """
    result = np.empty_like(array, dtype=dtype)
    for source, target in zip(chunks(array), chunks(result), strict=True):
        target[:] = source if change is None else change(source)
    return result


def spans(size: int, plane_voxels: int) -> Iterator[tuple[int, int]]:
    """Yield ``(first, last)`` of the slabs of a stack of planes.

    Each has about :data:`CHUNK_VOXELS` voxels.

    Example:
        >>> list(spans(5, CHUNK_VOXELS // 2))
        [(0, 2), (2, 4), (4, 5)]
    """
    thickness = max(1, CHUNK_VOXELS // max(1, plane_voxels))
    for first in range(0, size, thickness):
        yield first, min(first + thickness, size)


def values_of(array: NDArray[Any]) -> NDArray[Any]:
    """Find the distinct values of an array, in rising order.

    Example:
        >>> values_of(np.array([[3, -1], [3, 0]], dtype=np.int16)).tolist()
        [-1, 0, 3]
    """
    if array.dtype.kind not in "iu" or array.dtype.itemsize > 4:
        return np.unique(array)
    low, high = int(array.min()), int(array.max())
    if high - low >= 2**16:
        return np.unique(array)
    is_present = np.zeros(high - low + 1, dtype=np.bool_)  # a tenth of the time of sorting
    for part in chunks(array):
        rest = part[part != 0]  # nearly everything is 0 in most label maps
        is_present[rest.astype(np.int64) - low] = True
        if rest.size < part.size:
            is_present[-low] = True
    return np.flatnonzero(is_present) + low
