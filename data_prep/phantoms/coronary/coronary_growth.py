"""Growth of a coronary tree on the heart's surface."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.spatial import cKDTree

from data_prep.phantoms.coronary.coronary_heart import CoronaryHeart
from data_prep.phantoms.curves import Points, compute_arc_lengths, interpolate

STEP_MM = 0.25
LIFT_MM = 2.0
"""Height of the centrelines above the heart's surface."""
GAP_MM = 2.0
"""Minimum of fat between vessels, except at bifurcations."""
SHORTEST_MM = 9.0
"""Minimum length of a branch; shorter ones are left out."""


@dataclass(frozen=True)
class Branch:
    """Centreline of one artery, with points 0.25 mm apart, and its diameters.

    Args:
        name: ``"LAD"``, ``"D1"`` and so on, unique in a tree.
        parent: branch on whose centreline this one starts; None for a start at the aorta.
        parent_index: index of the parent's point at which the branch starts.
        centreline_mm: ``(n, 3)``.
        diameter_mm: ``(n,)``.
    """

    name: str
    parent: str | None
    parent_index: int
    centreline_mm: Points
    diameter_mm: NDArray[np.float64]


class NoSpaceError(Exception):
    """Lack of space for a main artery."""


class GrowingTree:
    """Coronary tree under construction.

    Args:
        heart: the heart.
        widths_mm: smallest and largest diameter.
        rng: generator of all draws.
    """

    def __init__(self, heart: CoronaryHeart, widths_mm: tuple[float, float], rng: np.random.Generator) -> None:
        self.heart = heart
        self.widths_mm = widths_mm
        self.rng = rng
        self.branches: dict[str, Branch] = {}
        self.sheet = 1 + LIFT_MM / heart.radius_mm
        self._aorta = cKDTree(heart.aorta.centreline_mm)

    def grow(
        self,
        name: str,
        corners: Sequence[tuple[float, ...]],
        diameters_mm: tuple[float, float],
        *,
        parent: str | None = None,
        at: int = 0,
        needed: bool = False,
    ) -> None:
        """Add a branch through corners, cut where the space ends.

        Args:
            name: name of the branch.
            corners: places on the heart (see :class:`CoronaryHeart`).
            diameters_mm: diameter at the start and at the end.
            parent: name of the parent; None for a start at the aorta.
            at: index of the parent's point at which the branch starts.
            needed: whether a tree without the branch is invalid.

        Raises:
            NoSpaceError: a needed branch does not fit.
        """
        points = self._draw_course(np.array(corners, dtype=float))
        if parent is not None:
            fade = np.exp(-np.arange(len(points)) * STEP_MM / 4)
            points = points + fade[:, None] * (self.branches[parent].centreline_mm[at] - points[0])
        share = np.linspace(0, 1, len(points))
        ripple = 1 + 0.04 * np.sin(2 * np.pi * (share * self.rng.uniform(2, 5) + self.rng.random()))
        diameter = np.clip((diameters_mm[0] * (1 - share) + diameters_mm[1] * share) * ripple, *self.widths_mm)
        count = self._count_free_points(points, diameter / 2, parent, at)
        if count * STEP_MM >= (2 if name == "LM" else SHORTEST_MM):
            self.branches[name] = Branch(name, parent, at, points[:count], diameter[:count])
        elif needed:
            raise NoSpaceError(name)

    def places(self, name: str) -> Points:
        """Compute the places of a branch's points on the heart."""
        return self.heart.locate(self.branches[name].centreline_mm)

    def _draw_course(self, corners: Points) -> Points:
        """Draw a smooth winding curve through corners, in equal steps."""
        along = compute_arc_lengths(self.heart.place(corners))
        fine = np.linspace(0, along[-1], max(60, int(8 * along[-1])))
        places = PchipInterpolator(along, corners)(fine)
        places[:, :2] += self._draw_winding(fine, along[-1]) / np.maximum(np.sin(np.radians(places[:, 1:2])), 0.4)
        points = self.heart.place(places)
        along = compute_arc_lengths(points)
        steps = np.linspace(0, along[-1], max(2, round(along[-1] / STEP_MM) + 1))
        return interpolate(steps, along, points)

    def _draw_winding(self, along_mm: NDArray[np.float64], length_mm: float) -> Points:
        """Draw a lateral displacement in degrees, 0 at the start."""
        ramp = np.clip(along_mm / 12, 0, 1)[:, None] if length_mm > 20 else np.zeros((len(along_mm), 1))
        waves = np.zeros((len(along_mm), 2))
        for _ in range(3):
            wavelength, phase = self.rng.uniform(11, 40), self.rng.uniform(0, 2 * np.pi, 2)
            amplitude_mm = self.rng.uniform(0, 0.035, 2) * wavelength
            waves += amplitude_mm * np.sin(2 * np.pi * along_mm[:, None] / wavelength + phase)
        return ramp * np.degrees(waves / self.heart.radius_mm)

    def _count_free_points(self, points: Points, radii: NDArray[np.float64], parent: str | None, at: int) -> int:
        """Count the points before the first one too close to a vessel."""
        along_mm = np.arange(len(points)) * STEP_MM
        axis_mm, nearest = self._aorta.query(points)
        gap = axis_mm - self.heart.aorta.radius_mm[nearest] - radii
        allowed = _compute_allowed_gap(along_mm, radii[0], GAP_MM) if parent is None else np.full(len(points), GAP_MM)
        bad = gap < allowed
        for other in self.branches.values():
            distance, nearest = cKDTree(other.centreline_mm).query(points)
            gap = distance - other.diameter_mm[nearest] / 2 - radii
            if other.name == parent or (parent is not None and (other.parent, other.parent_index) == (parent, at)):
                bad |= gap < _compute_allowed_gap(along_mm, radii[0] + other.diameter_mm[nearest] / 2, GAP_MM)
            else:
                bad |= gap < GAP_MM
        return int(np.argmax(bad)) if bad.any() else len(points)


def _compute_allowed_gap(
    along_mm: NDArray[np.floating], radii_mm: NDArray[np.floating] | float, most_mm: float
) -> NDArray[np.floating]:
    """Compute the smallest allowed gap between a branch and its parent.

    Args:
        along_mm: arc length of the branch's points; close to the parent no gap is required.
        radii_mm: sum of both radii.
        most_mm: required gap far from the start.
    """
    gap = np.minimum(most_mm, 0.35 * along_mm - 0.6 * radii_mm)
    return np.where(along_mm > 2 * radii_mm, gap, -np.inf)
