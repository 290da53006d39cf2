"""A slow, obvious reference for every surface metric: all pairs of surface voxels, one loop each."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest

Distances = tuple[list[float], list[float]]


@pytest.fixture(scope="session")
def distances_by_all_pairs() -> Callable[[np.ndarray, np.ndarray, Sequence[float]], Distances]:
    """Distances from each surface voxel to the other surface, prediction's first."""

    def distances(prediction: np.ndarray, label: np.ndarray, spacing_mm: Sequence[float]) -> Distances:
        of_prediction, of_label = surface_voxels(prediction), surface_voxels(label)
        return nearest(of_prediction, of_label, spacing_mm), nearest(of_label, of_prediction, spacing_mm)

    return distances


def surface_voxels(mask: np.ndarray) -> list[tuple[int, ...]]:
    return [voxel for voxel in np.ndindex(mask.shape) if mask[voxel] and touches_outside(mask, voxel)]


def touches_outside(mask: np.ndarray, voxel: tuple[int, ...]) -> bool:
    for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
        neighbour = list(voxel)
        neighbour[axis] += step
        if not 0 <= neighbour[axis] < mask.shape[axis] or not mask[tuple(neighbour)]:
            return True
    return False


def nearest(points: list[tuple[int, ...]], targets: list[tuple[int, ...]], spacing_mm: Sequence[float]) -> list[float]:
    scale = np.asarray(spacing_mm)
    return [
        min((float(np.linalg.norm((np.array(p) - np.array(t)) * scale)) for t in targets), default=float("inf"))
        for p in points
    ]
