"""Affines: how far two grids lie apart, and how far axes are from right angles."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

Affine = NDArray[np.float64]


def displacement_voxels(affine: Affine, other: Affine, shape: Sequence[int]) -> float:
    """How far a corner voxel of a volume lies elsewhere under another affine, at most, in voxels along an axis.

    Both maps are affine, so no voxel lies further off than the furthest corner.

    Example:
        >>> shifted = np.diag([2.0, 2.0, 2.0, 1.0])
        >>> shifted[0, 3] = 1.0
        >>> displacement_voxels(np.diag([2.0, 2.0, 2.0, 1.0]), shifted, (4, 4, 4))
        0.5
    """
    corners = np.array([(*corner, 1) for corner in product(*((0, size - 1) for size in shape))], dtype=np.float64).T
    apart_mm = ((other - affine) @ corners)[:3]
    return float(np.abs(np.linalg.solve(affine[:3, :3], apart_mm)).max())


def nearest_orthogonal(directions: Affine) -> tuple[Affine, float]:
    """The orthogonal matrix nearest to three unit columns, and the largest departure from a right angle in degrees."""
    cosines = directions.T @ directions
    largest = float(np.abs(cosines[np.triu_indices(3, k=1)]).max())
    left, _, right = np.linalg.svd(directions)
    return left @ right, float(np.degrees(np.arcsin(min(largest, 1.0))))
