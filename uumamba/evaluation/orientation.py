"""Array orientation for display: radiological slices, or head to feet."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from uumamba.types import SpacingMm


def find_display_order(
    affine: NDArray[np.float64], spacing_mm: SpacingMm
) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """Return axis order and flips to radiological ``(slice, row, column)``.

    The slice axis has the largest spacing (of several, the one closest to head-foot). Columns run to the patient's
    left, rows to the back or the feet.

    Returns:
        Order of the native axes, and reordered axes to flip.

    Example:
        >>> find_display_order(np.diag([1.0, 1.0, 1.0, 1.0]), (1.4, 1.4, 10.0))
        ((2, 1, 0), (1, 2))
    """
    directions, world_of = _match_axes(affine)
    through = max(range(3), key=lambda axis: (spacing_mm[axis], world_of[axis]))
    column, row = sorted((axis for axis in range(3) if axis != through), key=lambda axis: world_of[axis])
    order = (through, row, column)
    to_right_or_up = [position for position in (1, 2) if directions[world_of[order[position]], order[position]] > 0]
    return order, tuple(to_right_or_up)


def find_body_order(affine: NDArray[np.float64]) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """Return axis order and flips to ``(z, y, x)``.

    The reordered axes run from head to feet, from front to back and from right to left.

    Returns:
        Order of the native axes, and reordered axes to flip.

    Example:
        >>> find_body_order(np.diag([-0.5, -0.5, 2.0, 1.0]))
        ((2, 1, 0), (0,))
    """
    directions, world_of = _match_axes(affine)
    z, y, x = sorted(range(3), key=lambda axis: -world_of[axis])
    order = (z, y, x)
    return order, tuple(position for position, axis in enumerate(order) if directions[world_of[axis], axis] > 0)


def _match_axes(affine: NDArray[np.float64]) -> tuple[NDArray[np.float64], dict[int, int]]:
    """Return the unit directions and the closest world axes of native axes.

    Directions are the columns of a 3x3 matrix. World axes 0, 1, 2 are x, y, z; each belongs to one native axis.
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    worlds, natives = linear_sum_assignment(-np.abs(directions))
    return directions, {int(native): int(world) for world, native in zip(worlds, natives, strict=True)}
