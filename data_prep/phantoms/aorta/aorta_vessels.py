"""Vessels of the aorta phantom in world millimetres."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.phantoms.curves import Points, compute_arc_lengths, compute_tangents

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
