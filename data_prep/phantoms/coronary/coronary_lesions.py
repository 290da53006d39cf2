"""Lesions of the coronary phantom's arteries: plaques, stents, and motion during the scan."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data_prep.phantoms.coronary.coronary_grid import Field, Grid
from data_prep.phantoms.coronary.coronary_growth import STEP_MM, Branch
from data_prep.phantoms.coronary.coronary_heart import Tube
from data_prep.phantoms.coronary.coronary_tree import left_tree
from data_prep.phantoms.curves import Points, unit_tangents

_STENTABLE = ("LAD", "LCx", "RCA")
_RING_MM = 1.2
_CROWNS = 6
_METAL_HU_MM3 = 36.0
"""Excess of a strut over blood, times its volume, for each tenth of a millimetre of its length."""


@dataclass(frozen=True)
class Lesions:
    """The findings of one case.

    Args:
        plaques: calcium by branch name, within the vessel's wall.
        stents: struts by branch name, points a tenth of a millimetre apart.
        moving: names of the branches that moved during the scan; the left tree, all others, or none.
        motion_mm: vector of the motion.
    """

    plaques: tuple[tuple[str, Tube], ...]
    stents: tuple[tuple[str, Points], ...]
    moving: frozenset[str]
    motion_mm: NDArray[np.float64]


def draw_lesions(branches: Sequence[Branch], rng: np.random.Generator) -> Lesions:
    """Draw plaques in three cases of five, a stent in one of four, motion in one of four."""
    named = {branch.name: branch for branch in branches}
    plaques: list[tuple[str, Tube]] = []
    if rng.random() < 0.6:
        for _ in range(rng.integers(1, 7)):
            name = str(rng.choice(list(named)))
            plaques.append((name, _draw_plaque(named[name], rng)))
    stents: list[tuple[str, Points]] = []
    if rng.random() < 0.25:
        name = str(rng.choice(_STENTABLE))
        stents.append((name, _draw_stent(named[name], rng)))
    moving: frozenset[str] = frozenset()
    if rng.random() < 0.25:
        moving = left_tree(branches) if rng.random() < 0.3 else frozenset(named) - left_tree(branches)
    way = rng.normal(size=3) * (1, 1, 0.5)
    motion_mm = way * rng.uniform(1.0, 2.4) / np.linalg.norm(way) * bool(moving)
    return Lesions(tuple(plaques), tuple(stents), moving, motion_mm)


def stent_hu(grid: Grid, struts_mm: Points) -> Field:
    """Excess of struts much thinner than a voxel: their metal, shared among the eight voxels around."""
    place = (struts_mm - grid.origin_mm) / grid.spacing_mm
    below = np.floor(place).astype(int)
    rest = place - below
    hu = np.zeros(grid.shape, dtype=np.float32)
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, rest, 1 - rest), axis=1)
        at = below + corner
        inside = np.all((at >= 0) & (at < grid.shape), axis=1)
        np.add.at(hu, tuple(at[inside].T), weight[inside].astype(np.float32))
    return hu * np.float32(_METAL_HU_MM3 / np.prod(grid.spacing_mm))


def moved(share: Field, motion_mm: NDArray[np.float64], grid: Grid) -> Field:
    """Average a vessel's share of each voxel over its motion, whose middle is the true place."""
    found = ndimage.find_objects((share > 0).astype(np.uint8))
    result = np.zeros_like(share)
    if found:
        margin = np.ceil(np.abs(motion_mm) / grid.spacing_mm).astype(int) + 1
        box = tuple(
            slice(max(0, part.start - extra), part.stop + extra) for part, extra in zip(found[0], margin, strict=True)
        )
        steps = [
            ndimage.shift(share[box], way * motion_mm / grid.spacing_mm, order=1) for way in np.linspace(-0.5, 0.5, 5)
        ]
        result[box] = np.mean(steps, axis=0)
    return result


def _draw_plaque(branch: Branch, rng: np.random.Generator) -> Tube:
    """Draw a speck or a streak of calcium at the inside of the wall, nowhere beyond it."""
    points = branch.centreline_mm
    length = min(len(points) - 4, round(rng.uniform(0.8, 6.0) / STEP_MM))
    start = int(rng.integers(2, len(points) - length - 1))
    part = slice(start, start + length)
    vessel = branch.diameter_mm[part] / 2
    radius = vessel * rng.uniform(0.3, 0.55)
    sideways, _ = across(points[part], rng.normal(size=3))
    return Tube(points[part] + sideways * (0.95 * vessel - radius)[:, None], radius)


def _draw_stent(branch: Branch, rng: np.random.Generator) -> Points:
    """Draw zigzag rings inside the wall and bars that join them."""
    points, radii = branch.centreline_mm, 0.44 * branch.diameter_mm
    length = min(len(points) // 2, round(rng.uniform(9, 18) / STEP_MM))
    start = int(rng.integers(4, max(5, len(points) // 2 - length // 2)))
    part = slice(start, start + length)
    one, other = across(points[part], rng.normal(size=3))
    along = unit_tangents(points[part])
    angles = np.arange(0, 2 * np.pi, 0.1 / 1.6)
    struts = []
    for ring in range(2, length - 2, round(_RING_MM / STEP_MM)):
        zigzag = 0.45 * np.sin(_CROWNS * angles)[:, None] * along[ring]
        turn = np.cos(angles)[:, None] * one[ring] + np.sin(angles)[:, None] * other[ring]
        struts.append(points[part][ring] + radii[part][ring] * turn + zigzag)
    for angle in (0.0, np.pi):
        turn = np.cos(angle) * one + np.sin(angle) * other
        struts.append(points[part] + radii[part][:, None] * turn)
    return np.concatenate(struts)


def across(points_mm: Points, hint: NDArray[np.float64]) -> tuple[Points, Points]:
    """Two unit directions across a line at each of its points, the first as near to ``hint`` as possible."""
    along = unit_tangents(points_mm)
    first = hint - (along @ hint)[:, None] * along
    first /= np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-9)
    return first, np.cross(along, first)
