"""Position and reading of a patch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from uumamba.runtime.errors import require


def choose_start(
    generator: torch.Generator, *, size: Sequence[int], shape: Sequence[int], centre: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Choose the first voxel of a patch around ``centre`` or at random.

    A patch that fits is inside the case, and centred on ``centre`` as far as the border allows. Along an axis where the
    patch does not fit, it is centred on the case and its start is negative.

    Args:
        generator: used once for each axis with a choice, if ``centre`` is None.
        size: size of the patch per axis.
        shape: shape of the case.
        centre: voxel inside the patch.

    Example:
        >>> choose_start(torch.Generator(), size=(4, 4, 8), shape=(9, 9, 6), centre=(5, 0, 2))
        (3, 0, -1)
    """
    start = []
    for axis, (length, available) in enumerate(zip(size, shape, strict=True)):
        if available <= length:
            start.append(-((length - available) // 2))
        elif centre is not None:
            start.append(min(max(int(centre[axis]) - length // 2, 0), available - length))
        else:
            start.append(int(torch.randint(available - length + 1, (), generator=generator)))
    return tuple(start)


def read_window(
    array: NDArray[Any], start: Sequence[int], size: Sequence[int], *, fill: float | None = None
) -> NDArray[Any]:
    """Copy a window over the last axes of an array.

    Only the part inside the array is read; the rest is filled.

    Args:
        array: possibly memory-mapped; leading axes beyond ``len(size)`` are channels and read completely.
        start: first voxel, negative if the window begins before the array.
        size: size of the window.
        fill: value outside of the array; None is the smallest value in the window, per channel.

    Raises:
        UsageError: the window and the array do not overlap.

    Example:
        >>> read_window(np.arange(6).reshape(2, 3), start=(-1, 1), size=(2, 3), fill=9).tolist()
        [[9, 9, 9], [1, 2, 9]]
    """
    shape = array.shape[-len(size) :]
    first = [max(begin, 0) for begin in start]
    last = [min(begin + length, available) for begin, length, available in zip(start, size, shape, strict=True)]
    require(
        all(low < high for low, high in zip(first, last, strict=True)),
        "start",
        got=tuple(start),
        expected=f"a window of size {tuple(size)} that overlaps an array of shape {shape}",
    )
    source: tuple[Any, ...] = (..., *map(slice, first, last))
    inside = np.array(array[source])
    if inside.shape[-len(size) :] == tuple(size):
        return inside
    window = np.empty((*inside.shape[: -len(size)], *size), dtype=array.dtype)
    window[...] = inside.min(axis=tuple(range(-len(size), 0)), keepdims=True) if fill is None else fill
    origin = np.array(start)
    target: tuple[Any, ...] = (..., *map(slice, first - origin, last - origin))
    window[target] = inside
    return window
