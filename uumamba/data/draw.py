"""Drawing voxels of a kind at random, without a list of all of them."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray


def draw_ordinals(total: int, wanted: int, generator: torch.Generator) -> NDArray[np.int64]:
    """At most so many of the numbers from 0 to ``total - 1``, each as likely as another, in rising order.

    Example:
        >>> draw_ordinals(3, 5, torch.Generator()).tolist()
        [0, 1, 2]
    """
    if total <= wanted:
        return np.arange(total)
    return np.sort(torch.randperm(total, generator=generator)[:wanted].numpy())


def drawn_in_planes(
    counts: Sequence[int] | NDArray[np.int64], ordinals: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Where rising ordinals fall among planes that hold so many each: ``(plane, ordinals within it)``.

    Example:
        >>> [(plane, each.tolist()) for plane, each in drawn_in_planes([3, 2, 4], np.array([0, 2, 6]))]
        [(0, [0, 2]), (2, [1])]
    """
    ends = np.cumsum(counts)
    bounds = np.searchsorted(ordinals, ends)
    first = 0
    for plane, last in enumerate(bounds):
        if last > first:
            yield plane, ordinals[first:last] - (ends[plane] - counts[plane])
        first = last
