"""The smallest box around a mask: most of a scan is empty, and work on the box costs what the structure does."""

import numpy as np

from uumamba.types import Mask


def bounding_box(mask: Mask) -> tuple[slice, ...]:
    """Slices that cut out every true voxel and as little else as they can; empty ones where there is none.

    Args:
        mask: boolean array of any shape.

    Example:
        >>> bounding_box(np.array([[False, False, False], [False, True, True]]))
        (slice(1, 2, None), slice(1, 3, None))
    """
    box: list[slice] = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        # Cut as we go: each axis then sees only what the ones before it left over.
        occupied = np.flatnonzero(mask[tuple(box)].any(axis=others))
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1) if occupied.size else slice(0, 0))
    return tuple(box)
