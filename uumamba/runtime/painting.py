"""Painting of regions into a label map, and their selection."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.5


def paint_regions(probabilities: Iterable[NDArray[Any]], classes: Sequence[int]) -> NDArray[np.uint8]:
    """Paint each region's class where its probability is above 0.5.

    Later regions are painted over earlier ones, so the nested parts of a region come after it. Voxels of no region
    are 0. Regions are read one at a time.

    Args:
        probabilities: of each region, at least one, all of one shape.
        classes: class of each region, in this order.

    Example:
        >>> paint_regions(np.array([[0.9, 0.8, 0.2], [0.7, 0.1, 0.5]]), [2, 1])
        array([1, 2, 0], dtype=uint8)
    """
    label: NDArray[np.uint8] | None = None
    for each, value in zip(probabilities, classes, strict=True):
        label = np.zeros(each.shape, dtype=np.uint8) if label is None else label
        label[each > THRESHOLD] = value
    assert label is not None, "there is at least one region"
    return label


def select_values(label: NDArray[Any], values: Sequence[int]) -> NDArray[np.bool_]:
    """Select the voxels of any of the values.

    Example:
        >>> select_values(np.array([0, 1, 2, 3]), [1, 3]).tolist()
        [False, True, False, True]
    """
    return label == values[0] if len(values) == 1 else np.isin(label, values)
