"""Polylines in millimetres: arc lengths, directions, and points between their corners."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""``(n, 3)``, in millimetres."""


def arc_lengths(points: Points) -> NDArray[np.float64]:
    """Distance of every point from the first, along the line.

    Example:
        >>> arc_lengths(np.array([[0.0, 0, 0], [3, 4, 0], [3, 4, 2]])).tolist()
        [0.0, 5.0, 7.0]
    """
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])


def total_length(points: Points) -> float:
    """Length of the whole line."""
    return float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())


def unit_tangents(points: Points) -> Points:
    """Unit direction of the line at every point."""
    along = np.gradient(points, axis=0)
    return along / np.linalg.norm(along, axis=1, keepdims=True)


def interpolate(at: NDArray[np.floating], places: NDArray[Any], points: Points) -> Points:
    """Points at some positions of a line whose corners have the positions ``places``."""
    return np.stack([np.interp(at, places, axis) for axis in points.T], axis=1)
