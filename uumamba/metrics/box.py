"""Bounding box of a mask.

The cost of a metric in a box depends on the size of the structure, not on that of the scan.
"""

import numpy as np

from uumamba.types import Mask


def bounding_box(mask: Mask) -> tuple[slice, ...]:
    """Return the smallest slices that contain every true voxel.

    The slices of an empty mask are empty.

    Args:
        mask: boolean array of any shape.

    Example:
        >>> bounding_box(np.array([[False, False, False], [False, True, True]]))
        (slice(1, 2, None), slice(1, 3, None))
    """
    box: list[slice] = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        # Crop axis by axis: each axis scans only the slices that the previous axes kept.
        occupied = np.flatnonzero(mask[tuple(box)].any(axis=others))
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1) if occupied.size else slice(0, 0))
    return tuple(box)
