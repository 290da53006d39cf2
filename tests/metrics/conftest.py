"""Masks, and reference surface distances over all pairs of voxels."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest

Distances = tuple[list[float], list[float]]


@pytest.fixture(scope="session")
def distances_by_all_pairs() -> Callable[[np.ndarray, np.ndarray, Sequence[float]], Distances]:
    """Distances from each surface voxel to the other surface, in both directions."""

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


@pytest.fixture(scope="session")
def tube() -> Callable[..., np.ndarray]:
    """Draw a straight round tube with flat ends at voxel centres."""

    def draw(
        *, length_mm: float, radius_mm: float, direction: Sequence[float], spacing_mm: Sequence[float]
    ) -> np.ndarray:
        unit = np.asarray(direction) / np.linalg.norm(direction)
        margin_mm = radius_mm + 2 * max(spacing_mm)
        start_mm = margin_mm + np.maximum(-unit * length_mm, 0)
        shape = np.ceil((np.abs(unit) * length_mm + 2 * margin_mm) / spacing_mm).astype(int) + 1
        points_mm = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) * spacing_mm - start_mm
        along_mm = points_mm @ unit
        across_mm = np.linalg.norm(points_mm - along_mm[..., None] * unit, axis=-1)
        rounding_mm = 1e-9
        inside = (along_mm >= -rounding_mm) & (along_mm <= length_mm + rounding_mm)
        return inside & (across_mm <= radius_mm + rounding_mm)

    return draw


@pytest.fixture(scope="session")
def torus() -> Callable[..., np.ndarray]:
    """Draw a solid torus around the first axis."""

    def draw(*, ring_radius: float, tube_radius: float) -> np.ndarray:
        half = int(np.ceil(ring_radius + tube_radius)) + 1
        z, y, x = np.meshgrid(*[np.arange(-half, half + 1)] * 3, indexing="ij")
        return np.hypot(np.hypot(y, x) - ring_radius, z) <= tube_radius

    return draw


@pytest.fixture(scope="session")
def two_blobs() -> tuple[np.ndarray, np.ndarray]:
    """Two ellipsoids with ragged borders that overlap in part."""
    shape = (14, 12, 9)
    noise = np.random.default_rng(0).normal(scale=0.1, size=(2, *shape))
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    offset = np.array([0.25, 0.0, -0.1]).reshape(3, 1, 1, 1)
    return np.linalg.norm(grid, axis=0) + noise[0] < 0.6, np.linalg.norm(grid - offset, axis=0) + noise[1] < 0.55
