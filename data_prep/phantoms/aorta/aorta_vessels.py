"""Vessels of the aorta phantom in world millimetres, and their ground truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.aorta import STRUCTURES
from data_prep.phantoms.curves import Points, compute_arc_lengths, compute_length, compute_tangents

GAP_MM = 3.0
"""Minimum gap between vessels behind their bifurcation; closer vessels would fuse in the label."""
LONGEST_BIFURCATION_MM = 12
"""Maximum length of a vessel over which its gap to another grows from 0 to ``GAP_MM``."""
SHARPEST_BEND = 0.85
"""Maximum of curvature times radius."""


@dataclass(frozen=True)
class Pose:
    """Pose of a body in the scanner.

    ``world = scale * rotation @ body + position``, in RAS+ millimetres. The origin of the body's frame is in the spine
    at the height of the aorta's bifurcation, +x to the right, +y to the front and +z to the head. ``sway`` bends the
    spine sideways and to the front, as a function of height.
    """

    scale: float
    rotation: NDArray[np.float64]
    position: NDArray[np.float64]
    sway: NDArray[np.float64]

    def to_world(self, points: Points) -> Points:
        """Transform body points ``(n, 3)`` to world coordinates."""
        return self.scale * points @ self.rotation.T + self.position

    def spine(self, z: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Compute x and y of the spine's axis at body heights."""
        (side, side_from, side_mm), (depth, depth_from, depth_mm) = self.sway.tolist()
        return side * np.sin((z - side_from) / side_mm), depth * np.sin((z - depth_from) / depth_mm)


@dataclass(frozen=True)
class Vessel:
    """VesselDepth along a centreline, divided into named structures.

    A voxel belongs to the structure of the nearest centreline point.

    Args:
        name: name of the vessel; of a side branch, also that of its only structure.
        parent: vessel on whose centreline this one starts; empty for the aorta.
        points_mm: centreline ``(n, 3)``, points about a millimetre apart.
        radii_mm: radius at each point.
        parts: structures in :data:`data_prep.aorta.STRUCTURES`, in order along the centreline.
        starts_mm: arc length at which each structure starts.
    """

    name: str
    parent: str
    points_mm: Points
    radii_mm: NDArray[np.float64]
    parts: tuple[str, ...]
    starts_mm: tuple[float, ...]

    @property
    def arc_mm(self) -> NDArray[np.float64]:
        """Arc length of every centreline point."""
        return compute_arc_lengths(self.points_mm)

    @property
    def tangents(self) -> Points:
        """Unit tangent of the centreline at every point."""
        return compute_tangents(self.points_mm)


@dataclass(frozen=True)
class Flap:
    """Helical membrane between the true and the false lumen of a dissection.

    At arc length ``s`` of the aorta the membrane is a plane at ``offset`` radii from the centreline, with its normal at
    the angle ``angle + twist * (s - start_mm)``. Towards both ends the membrane moves to the wall.
    """

    start_mm: float
    stop_mm: float
    offset: float
    angle: float
    twist: float
    thickness_mm: float


@dataclass(frozen=True)
class Tree:
    """All vessels of a subject in world millimetres.

    The aorta is first, and each parent precedes its branches. ``heights`` are named levels in the body's frame, by
    which other organs are placed.
    """

    vessels: tuple[Vessel, ...]
    pose: Pose
    flap: Flap | None
    bovine: bool
    heights: Mapping[str, float]

    def vessel(self, name: str) -> Vessel:
        """Return the vessel with a name."""
        return next(vessel for vessel in self.vessels if vessel.name == name)


@dataclass(frozen=True)
class Segment:
    """Centreline in RAS+ millimetres and parent of one structure.

    The centreline of a branch starts on its parent's, inside the parent's lumen. The first zone has no parent.
    """

    name: str
    parent: str
    points_mm: Points
    diameters_mm: NDArray[np.float64]

    @property
    def length_mm(self) -> float:
        """Length of the centreline."""
        return compute_length(self.points_mm)


@dataclass(frozen=True)
class AortaTruth:
    """Ground truth of a phantom's aorta.

    Args:
        segments: structures by name, in the order of the label values.
        dissected: whether a flap divides the lumen.
        bovine: whether innominate and left carotid artery share an ostium.
        betti_numbers: numbers of parts, tunnels and cavities in the union of all structures, which is one tree.
    """

    segments: Mapping[str, Segment]
    dissected: bool
    bovine: bool
    betti_numbers: tuple[int, int, int] = (1, 0, 0)

    @property
    def length_mm(self) -> float:
        """Total length of the centrelines."""
        return sum(segment.length_mm for segment in self.segments.values())


def derive_truth(tree: Tree) -> AortaTruth:
    """Derive the ground truth by cutting the vessels into structures."""
    segments = [segment for vessel in tree.vessels for segment in _cut_vessel(vessel, tree)]
    ordered = {segment.name: segment for segment in sorted(segments, key=lambda found: STRUCTURES[found.name])}
    return AortaTruth(ordered, tree.flap is not None, tree.bovine)


def _cut_vessel(vessel: Vessel, tree: Tree) -> list[Segment]:
    """Cut a vessel into its structures; neighbours share the point between them."""
    cuts = [*np.searchsorted(vessel.arc_mm, vessel.starts_mm), len(vessel.points_mm) - 1]
    parent = _find_part(tree.vessel(vessel.parent), vessel.points_mm[0]) if vessel.parent else ""
    segments = []
    for part, first, last in zip(vessel.parts, cuts[:-1], cuts[1:], strict=True):
        here = slice(int(first), int(last) + 1)
        segments.append(Segment(part, parent, vessel.points_mm[here], 2 * vessel.radii_mm[here]))
        parent = part
    return segments


def _find_part(vessel: Vessel, point_mm: Points) -> str:
    nearest = int(np.argmin(np.linalg.norm(vessel.points_mm - point_mm, axis=1)))
    return vessel.parts[int(np.searchsorted(vessel.starts_mm, vessel.arc_mm[nearest], side="right")) - 1]


def has_smooth_bends(aorta: Vessel) -> bool:
    """Return whether the aorta's wall is free of folds at inner bends."""
    turns = np.linalg.norm(np.diff(aorta.tangents, axis=0), axis=1) / np.diff(aorta.arc_mm)
    return bool((turns * aorta.radii_mm[1:]).max() < SHARPEST_BEND)


def has_gaps(vessels: Sequence[Vessel]) -> bool:
    """Return whether vessels keep their gaps behind each bifurcation."""
    for number, later in enumerate(vessels):
        for earlier in vessels[:number]:
            between = np.linalg.norm(later.points_mm[::2, None] - earlier.points_mm[None, ::2], axis=2)
            gaps = (between - later.radii_mm[::2, None] - earlier.radii_mm[None, ::2]).min(axis=1)
            # The fillet of a gap that opens slowly, or opens and closes again, would leave a tunnel in the label.
            is_apart = gaps > np.linspace(0.5, GAP_MM, 6)[:, None]
            is_slow = np.count_nonzero(is_apart[0]) - np.count_nonzero(is_apart[-1]) > LONGEST_BIFURCATION_MM / 2
            if is_slow or not is_apart[:, -1].all() or (is_apart[:, :-1] & ~is_apart[:, 1:]).any():
                return False
    return True
