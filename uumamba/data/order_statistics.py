"""Percentiles of large images, without a copy of the image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.chunks import chunks

_HALF_BITS = 16
_SIGN = np.uint32(2**31)


def find_percentiles(image: NDArray[Any], percentiles: Sequence[float]) -> NDArray[np.float64]:
    """Find percentiles of an image as float32, equal to those of :func:`numpy.percentile`.

    Values are counted by the first and then by the second half of their bits, so memory holds two tables of 65536
    counts in place of a sorted copy.

    Args:
        image: finite values of any real dtype.
        percentiles: from 0 to 100.

    Example:
        >>> find_percentiles(np.array([3, 1, 2, 10]), (0, 50, 100))
        array([ 1. ,  2.5, 10. ])
    """
    places = [share / np.float32(100) * (image.size - 1) for share in np.asarray(percentiles, dtype=np.float64)]
    ranks = sorted({rank for place in places for rank in (int(place), min(int(place) + 1, image.size - 1))})
    values = dict(zip(ranks, _find_ranked(image, ranks), strict=True))
    found = []
    for place in places:
        low, high = values[int(place)], values[min(int(place) + 1, image.size - 1)]
        share, step = place - int(place), high - low
        found.append(float(high - step * (1 - share) if share >= 0.5 else low + step * share))
    return np.array(found, dtype=np.float64)


def _find_ranked(image: NDArray[Any], ranks: Sequence[int]) -> list[np.float32]:
    """Find the values at ascending ranks of the sorted image."""
    counts = np.zeros(2**_HALF_BITS, dtype=np.int64)
    for part in chunks(image):
        counts += np.bincount(_sortable(part) >> _HALF_BITS, minlength=len(counts))
    ends = counts.cumsum()
    firsts = np.searchsorted(ends, ranks, side="right")
    seconds = {int(first): np.zeros_like(counts) for first in firsts}
    for part in chunks(image):
        keys = _sortable(part)
        halves = keys >> _HALF_BITS
        for first, table in seconds.items():
            table += np.bincount(keys[halves == first] & (2**_HALF_BITS - 1), minlength=len(counts))
    found = []
    for rank, first in zip(ranks, map(int, firsts), strict=True):
        inside = rank - int(ends[first - 1])  # no finite value has the first key
        second = int(np.searchsorted(seconds[first].cumsum(), inside, side="right"))
        found.append(_from_sortable(np.array([(first << _HALF_BITS) + second], dtype=np.uint32)))
    return found


def _sortable(values: NDArray[Any]) -> NDArray[np.uint32]:
    """Map float32 values to unsigned integers of the same order."""
    bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)  # minus 0 becomes 0
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _from_sortable(keys: NDArray[np.uint32]) -> np.float32:
    found: np.float32 = np.where(keys & _SIGN, keys ^ _SIGN, ~keys).astype(np.uint32).view(np.float32)[0]
    return found
