"""Bounding box of a mask, so that the cost of a metric follows the structure and not the scan."""

import numpy as np

from uumamba.types import Mask


def bounding_box(mask: Mask) -> tuple[slice, ...]:
    """Return the smallest slices that contain every true voxel; empty slices for an empty mask.

    Args:
        mask: boolean array of any shape.

    Example:
        >>> bounding_box(np.array([[False, False, False], [False, True, True]]))
        (slice(1, 2, None), slice(1, 3, None))
    """
    box: list[slice] = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        # Crop axis by axis, so that each axis scans only what the previous ones left.
        occupied = np.flatnonzero(mask[tuple(box)].any(axis=others))
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1) if occupied.size else slice(0, 0))
    return tuple(box)
