"""Coronary plaques, stents, and motion during the scan."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data_prep.phantoms.coronary.coronary_grid import CoronaryGrid
from data_prep.phantoms.coronary.coronary_growth import STEP_MM, Branch
from data_prep.phantoms.coronary.coronary_heart import Tube
from data_prep.phantoms.coronary.coronary_tree import left_tree
from data_prep.phantoms.curves import Points, compute_tangents
from data_prep.phantoms.scanner_noise import Field

_STENTABLE = ("LAD", "LCx", "RCA")
_RING_MM = 1.2
_CROWNS = 6
_METAL_HU_MM3 = 36.0
"""Hounsfield units of a strut in excess of blood, times its volume, per 0.1 mm of its length."""


@dataclass(frozen=True)
class Lesions:
    """Lesions of one case, and its motion.

    Args:
        plaques: branch name and calcium of each plaque, within the vessel's wall.
        stents: branch name and struts of each stent, points 0.1 mm apart.
        moving: names of the branches that moved during the scan: the left tree, all others, or none.
        motion_mm: vector of the motion.
    """

    plaques: tuple[tuple[str, Tube], ...]
    stents: tuple[tuple[str, Points], ...]
    moving: frozenset[str]
    motion_mm: NDArray[np.float64]


def draw_lesions(branches: Sequence[Branch], rng: np.random.Generator) -> Lesions:
    """Draw the lesions of a case.

    Three cases in five have plaques, one in four a stent, and one in four motion.
    """
    named = {branch.name: branch for branch in branches}
    plaque_count = int(rng.integers(1, 7)) if rng.random() < 0.6 else 0
    plaques = tuple(_draw_plaque(branches[rng.choice(len(branches))], rng) for _ in range(plaque_count))
    stents = (_draw_stent(named[str(rng.choice(_STENTABLE))], rng),) if rng.random() < 0.25 else ()
    moving: frozenset[str] = frozenset()
    if rng.random() < 0.25:
        moving = left_tree(branches) if rng.random() < 0.3 else frozenset(named) - left_tree(branches)
    way = rng.normal(size=3) * (1, 1, 0.5)
    motion_mm = way * rng.uniform(1.0, 2.4) / np.linalg.norm(way) * bool(moving)
    return Lesions(plaques, stents, moving, motion_mm)


def paint_stent(grid: CoronaryGrid, struts_mm: Points) -> Field:
    """Distribute the metal of thin struts among their eight nearest voxels.

    Returns:
        Hounsfield units in excess of blood.
    """
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


def average_motion(share: Field, motion_mm: NDArray[np.float64], grid: CoronaryGrid) -> Field:
    """Average a vessel's share of each voxel over its motion.

    The middle of the motion is the position of the label.
    """
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


def _draw_plaque(branch: Branch, rng: np.random.Generator) -> tuple[str, Tube]:
    """Draw a spot or a streak of calcium inside the wall.

    Returns:
        Name of the branch, and the calcium.
    """
    points = branch.centreline_mm
    length = min(len(points) - 4, round(rng.uniform(0.8, 6.0) / STEP_MM))
    start = int(rng.integers(2, len(points) - length - 1))
    part = slice(start, start + length)
    vessel = branch.diameter_mm[part] / 2
    radius = vessel * rng.uniform(0.3, 0.55)
    sideways, _ = compute_normals(points[part], rng.normal(size=3))
    return branch.name, Tube(points[part] + sideways * (0.95 * vessel - radius)[:, None], radius)


def _draw_stent(branch: Branch, rng: np.random.Generator) -> tuple[str, Points]:
    """Draw zigzag rings inside the wall, joined by bars.

    Returns:
        Name of the branch, and points on the struts.
    """
    points, radii = branch.centreline_mm, 0.44 * branch.diameter_mm
    length = min(len(points) // 2, round(rng.uniform(9, 18) / STEP_MM))
    start = int(rng.integers(4, max(5, len(points) // 2 - length // 2)))
    part = slice(start, start + length)
    one, other = compute_normals(points[part], rng.normal(size=3))
    along = compute_tangents(points[part])
    angles = np.arange(0, 2 * np.pi, 0.1 / 1.6)
    struts = []
    for ring in range(2, length - 2, round(_RING_MM / STEP_MM)):
        zigzag = 0.45 * np.sin(_CROWNS * angles)[:, None] * along[ring]
        turn = np.cos(angles)[:, None] * one[ring] + np.sin(angles)[:, None] * other[ring]
        struts.append(points[part][ring] + radii[part][ring] * turn + zigzag)
    for angle in (0.0, np.pi):
        turn = np.cos(angle) * one + np.sin(angle) * other
        struts.append(points[part] + radii[part][:, None] * turn)
    return branch.name, np.concatenate(struts)


def compute_normals(points_mm: Points, hint: NDArray[np.float64]) -> tuple[Points, Points]:
    """Compute two orthogonal unit normals at each point of a line.

    The first normal is as close to the direction ``hint`` as possible.
    """
    along = compute_tangents(points_mm)
    first = hint - (along @ hint)[:, None] * along
    first /= np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-9)
    return first, np.cross(along, first)
