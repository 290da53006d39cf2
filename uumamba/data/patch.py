"""Position of a patch in a case, and reading of just that window."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from uumamba.runtime.errors import require


def choose_start(
    generator: torch.Generator, *, size: Sequence[int], shape: Sequence[int], centre: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Choose the first voxel of a patch: around a voxel, or anywhere.

    The patch stays inside the case where it fits, so it is centred on ``centre`` as far as the case's border allows;
    along an axis where it does not fit it is centred on the case, and its start is negative.

    Args:
        generator: asked once for each axis with a choice, when ``centre`` is None.
        size: the patch's, per axis.
        shape: the case's.
        centre: a voxel inside the patch.

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
    """Copy a window over the last axes.

    Only the part inside the array is read, and the rest is filled.

    Args:
        array: possibly memory-mapped; leading axes beyond ``len(size)`` are channels and read whole.
        start: first voxel, negative where the window begins before the array.
        size: the window's.
        fill: value outside; None takes the smallest value that was read, channel by channel.

    Raises:
        UsageError: the window is wholly outside.

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
        expected=f"a window of size {tuple(size)} that meets the shape {shape}",
    )
    source: tuple[Any, ...] = (..., *map(slice, first, last))
    inside = np.array(array[source])
    if inside.shape[-len(size) :] == tuple(size):
        return inside
    window = np.empty((*inside.shape[: -len(size)], *size), dtype=array.dtype)
    spatial = tuple(range(-len(size), 0))
    window[...] = inside.min(axis=spatial, keepdims=True) if fill is None else fill
    origin = np.array(start)
    target: tuple[Any, ...] = (..., *map(slice, first - origin, last - origin))
    window[target] = inside
    return window
