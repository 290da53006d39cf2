"""Prepared images as planes that are computed when they are needed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[Any]


@dataclass(frozen=True)
class PlaneImage:
    """Prepared image whose planes are computed when they are needed.

    Attributes:
        shape: ``(C, *S)``.
        planes: function that yields the planes ``(C, *S[1:])`` in order, as often as it is called.
    """

    shape: tuple[int, ...]
    planes: Callable[[], Iterator[Plane]]


def select_planes(image: NDArray[Any] | PlaneImage, numbers: Sequence[int] | NDArray[np.int_]) -> NDArray[Any]:
    """Return some planes of an image, ``(C, n, *S[1:])``.

    Args:
        image: ``(C, *S)``.
        numbers: increasing numbers of the planes, at least one.

    Example:
        >>> image = np.arange(12.0).reshape(1, 4, 3)
        >>> lazy = PlaneImage(image.shape, lambda: iter(image.swapaxes(0, 1)))
        >>> bool((select_planes(lazy, [1, 3]) == select_planes(image, [1, 3])).all())
        True
    """
    if not isinstance(image, PlaneImage):
        return image[:, numbers]
    wanted = set(map(int, numbers))
    planes = islice(image.planes(), max(wanted) + 1)
    return np.stack([plane.copy() for number, plane in enumerate(planes) if number in wanted], axis=1)


def list_neighbours(planes: Iterable[Plane], count: int) -> Iterator[Plane]:
    """Yield each slice with its neighbours as channels.

    The first and the last slice are their own neighbours.

    Args:
        planes: slices ``(C, Y, X)``.
        count: number of slices on either side; 0 yields the slices.

    Yields:
        ``(C (2 count + 1), Y, X)``, the slices of a channel in their order.

    Example:
        >>> [plane.ravel().tolist() for plane in list_neighbours(np.arange(3.0).reshape(3, 1, 1, 1), 1)]
        [[0.0, 0.0, 1.0], [0.0, 1.0, 2.0], [1.0, 2.0, 2.0]]
    """
    near = deque[Plane](maxlen=2 * count + 1)
    for plane in _repeat_edges(planes, count):
        near.append(plane)
        if len(near) == near.maxlen:
            stacked = np.stack(near, axis=1)
            yield stacked.reshape(-1, *stacked.shape[2:])


def _repeat_edges(planes: Iterable[Plane], count: int) -> Iterator[Plane]:
    source = iter(planes)
    edge = next(source)
    yield from repeat(edge, count + 1)
    for edge in source:
        yield edge
    yield from repeat(edge, count)
