"""Vessels of the aorta phantom in world millimetres, and their known truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.aorta import STRUCTURES
from data_prep.phantoms.curves import Points, arc_lengths, total_length, unit_tangents

GAP_MM = 3.0
"""Least distance of vessels that have parted, so that no two of them fuse in the label."""
SLOWEST_PARTING_MM = 12
"""Longest part of a vessel over which its gap to another grows from 0 to that."""
BETTI_NUMBERS = (1, 0, 0)
"""Of the union of all structures: one tree without a loop and without a cavity."""
SHARPEST_BEND = 0.85
"""Largest curvature times radius."""


@dataclass(frozen=True)
class Pose:
    """Pose of a body in the scanner: ``world = scale * rotation @ body + position``, RAS+ millimetres.

    The body's frame has its origin in the spine at the height of the aorta's bifurcation, +x to the right, +y to the
    front and +z to the head; ``sway`` bends the spine sidewards and to the front, by height alone.
    """

    scale: float
    rotation: NDArray[np.float64]
    position: NDArray[np.float64]
    sway: NDArray[np.float64]

    def to_world(self, points: Points) -> Points:
        """World coordinates of body points ``(n, 3)``."""
        return self.scale * points @ self.rotation.T + self.position

    def spine(self, z: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Position of the spine's axis at body heights: x and y."""
        (side, side_from, side_mm), (depth, depth_from, depth_mm) = self.sway.tolist()
        return side * np.sin((z - side_from) / side_mm), depth * np.sin((z - depth_from) / depth_mm)


@dataclass(frozen=True)
class Vessel:
    """Tube along points, cut into named parts; a voxel's part is that of the nearest point.

    Args:
        name: of the vessel; a side branch's is that of its only part.
        parent: the vessel on whose centreline it starts; empty for the aorta.
        points_mm: ``(n, 3)``, about a millimetre apart.
        radii_mm: at the points.
        parts: names in :data:`data_prep.aorta.STRUCTURES`, from the start on.
        starts_mm: start of each part along the points.
    """

    name: str
    parent: str
    points_mm: Points
    radii_mm: NDArray[np.float64]
    parts: tuple[str, ...]
    starts_mm: tuple[float, ...]

    @property
    def arc_mm(self) -> NDArray[np.float64]:
        """Distance of every point from the first, along the centreline."""
        return arc_lengths(self.points_mm)

    @property
    def tangents(self) -> Points:
        """Unit direction of the centreline at every point."""
        return unit_tangents(self.points_mm)


@dataclass(frozen=True)
class Flap:
    """The membrane between the true and the false lumen of a dissection, winding down within the aorta.

    At a distance ``s`` along the aorta it is the plane at ``offset`` radii from the centreline, its normal at the angle
    ``angle + twist * (s - start_mm)``; towards both ends it moves to the wall.
    """

    start_mm: float
    stop_mm: float
    offset: float
    angle: float
    twist: float
    thickness_mm: float


@dataclass(frozen=True)
class Tree:
    """All vessels of a subject in world millimetres, the aorta first and each parent before its branches.

    ``heights`` names levels of the body's frame that other organs are placed by; ``radii`` are in that frame too.
    """

    vessels: tuple[Vessel, ...]
    pose: Pose
    flap: Flap | None
    bovine: bool
    heights: Mapping[str, float]

    def vessel(self, name: str) -> Vessel:
        """The vessel of that name."""
        return next(vessel for vessel in self.vessels if vessel.name == name)


@dataclass(frozen=True)
class Segment:
    """One of the 23 structures: its centreline in RAS+ millimetres and its parent.

    A branch's centreline starts on that of its parent, inside the parent's lumen; the first zone has no parent.
    """

    name: str
    parent: str
    points_mm: Points
    diameters_mm: NDArray[np.float64]

    @property
    def length_mm(self) -> float:
        """Length of the centreline."""
        return total_length(self.points_mm)


@dataclass(frozen=True)
class AortaTruth:
    """Known truth of a phantom's aorta.

    Args:
        segments: by name, in the order of the label values.
        betti_numbers: of the union of all structures: parts, tunnels and cavities.
        dissected: whether a flap divides the lumen.
        bovine: whether innominate and left carotid artery share an ostium.
    """

    segments: Mapping[str, Segment]
    betti_numbers: tuple[int, int, int]
    dissected: bool
    bovine: bool

    @property
    def length_mm(self) -> float:
        """Length of all centrelines together."""
        return sum(segment.length_mm for segment in self.segments.values())


def truth_of(tree: Tree) -> AortaTruth:
    """Cut the tree's vessels at the borders of the zones."""
    segments = [segment for vessel in tree.vessels for segment in _segments(vessel, tree)]
    ordered = {segment.name: segment for segment in sorted(segments, key=lambda found: STRUCTURES[found.name])}
    return AortaTruth(ordered, BETTI_NUMBERS, tree.flap is not None, tree.bovine)


def _segments(vessel: Vessel, tree: Tree) -> list[Segment]:
    """Cut a vessel at the borders of its parts; neighbours share the point between them."""
    cuts = [*np.searchsorted(vessel.arc_mm, vessel.starts_mm), len(vessel.points_mm) - 1]
    parent = _part_at(tree.vessel(vessel.parent), vessel.points_mm[0]) if vessel.parent else ""
    segments = []
    for part, first, last in zip(vessel.parts, cuts[:-1], cuts[1:], strict=True):
        here = slice(int(first), int(last) + 1)
        segments.append(Segment(part, parent, vessel.points_mm[here], 2 * vessel.radii_mm[here]))
        parent = part
    return segments


def _part_at(vessel: Vessel, point_mm: Points) -> str:
    nearest = int(np.argmin(np.linalg.norm(vessel.points_mm - point_mm, axis=1)))
    return vessel.parts[int(np.searchsorted(vessel.starts_mm, vessel.arc_mm[nearest], side="right")) - 1]


def bends_gently(aorta: Vessel) -> bool:
    """Tell if the aorta's wall does not fold on the inner side of a bend."""
    turns = np.linalg.norm(np.diff(aorta.tangents, axis=0), axis=1) / np.diff(aorta.arc_mm)
    return bool((turns * aorta.radii_mm[1:]).max() < SHARPEST_BEND)


def stay_apart(vessels: Sequence[Vessel]) -> bool:
    """Tell if each vessel, once it has left an earlier one, keeps away from it."""
    for number, later in enumerate(vessels):
        for earlier in vessels[:number]:
            between = np.linalg.norm(later.points_mm[::2, None] - earlier.points_mm[None, ::2], axis=2)
            gaps = (between - later.radii_mm[::2, None] - earlier.radii_mm[None, ::2]).min(axis=1)
            # A crotch that opens slowly, or opens and closes again, would leave a tunnel where it is rounded.
            apart = gaps > np.linspace(0.5, GAP_MM, 6)[:, None]
            slow = np.count_nonzero(apart[0]) - np.count_nonzero(apart[-1]) > SLOWEST_PARTING_MM / 2
            if slow or not apart[:, -1].all() or (apart[:, :-1] & ~apart[:, 1:]).any():
                return False
    return True
