"""Polylines in millimetres: arc lengths, tangents and interpolation."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""``(n, 3)``, in millimetres."""


def compute_arc_lengths(points: Points) -> NDArray[np.float64]:
    """Compute the arc length of every point.

    Example:
        >>> compute_arc_lengths(np.array([[0.0, 0, 0], [3, 4, 0], [3, 4, 2]])).tolist()
        [0.0, 5.0, 7.0]
    """
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])


def compute_tangents(points: Points) -> Points:
    """Compute the unit tangent at every point."""
    along = np.gradient(points, axis=0)
    return along / np.linalg.norm(along, axis=1, keepdims=True)


def interpolate(at: NDArray[np.floating], places: NDArray[Any], points: Points) -> Points:
    """Interpolate a polyline linearly.

    Args:
        at: positions of the wanted points.
        places: positions of the line's points, in any unit.
        points: the line.
    """
    return np.stack([np.interp(at, places, axis) for axis in points.T], axis=1)
