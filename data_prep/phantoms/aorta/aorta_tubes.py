"""Tubes on the grid of the aorta phantom: depth of each voxel in the vessels, and the label."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.aorta import STRUCTURES
from data_prep.phantoms.aorta.aorta_vessels import Tree, Vessel
from data_prep.phantoms.curves import Points
from uumamba.types import LabelMap

FILLET_MM = 4.0
"""Crotches between vessels are rounded: gaps of less than half of this are filled."""
OUTSIDE_MM = -8.0
"""Depth of voxels that are far from every vessel."""
_CHUNK_POINTS = 8
_Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Grid:
    """Volume of 1 mm voxels, ``(z, y, x)``: x grows to the patient's left, y to the back, z to the head.

    Args:
        shape: ``(z, y, x)``.
        first_mm: world coordinates, RAS+, of the first voxel's centre.
    """

    shape: tuple[int, int, int]
    first_mm: tuple[float, float, float]

    def axes(self, box: _Box | None = None, *, step: int = 1) -> tuple[NDArray[np.float32], ...]:
        """World coordinates x, y, z of voxel centres, shaped to broadcast over ``(z, y, x)``.

        With a step, those of cubes of as many voxels an edge; the last ones may reach beyond the volume.
        """
        z, y, x = (np.arange(-(-size // step)) for size in self.shape)
        if box is not None:
            z, y, x = z[box[0]], y[box[1]], x[box[2]]
        right, front, head = self.first_mm
        middle = (step - 1) / 2
        return tuple(
            coordinate.astype(np.float32)
            for coordinate in (
                (right - middle - step * x)[None, None, :],
                (front - middle - step * y)[None, :, None],
                (head + middle + step * z)[:, None, None],
            )
        )

    def box_around(self, points_mm: Points, margin_mm: float) -> _Box:
        """The voxels within a margin of the points' bounding box, cut to the volume."""
        low, high = points_mm.min(axis=0) - margin_mm, points_mm.max(axis=0) + margin_mm
        right, front, head = self.first_mm
        bounds = ((low[2] - head, high[2] - head), (front - high[1], front - low[1]), (right - high[0], right - low[0]))
        z, y, x = (
            slice(int(np.clip(np.ceil(low), 0, size)), int(np.clip(np.floor(high) + 1, 0, size)))
            for (low, high), size in zip(bounds, self.shape, strict=True)
        )
        return z, y, x


@dataclass(frozen=True)
class Tube:
    """Vessel in a box of the grid: depth under its surface in mm (negative outside) and nearest point.

    Both reach ``-OUTSIDE_MM`` beyond the surface.
    """

    vessel: Vessel
    box: _Box
    depth_mm: NDArray[np.float32]
    nearest: NDArray[np.int16]


def draw_tube(vessel: Vessel, grid: Grid) -> Tube:
    """Draw a vessel on the grid, cut flat at its ends except for an aorta's lower one, which is round.

    Depth is the largest of ``radius - distance`` over the centreline's points. The round end lets the last zone reach
    as far down as the crotch of the iliac arteries.
    """
    reach = -OUTSIDE_MM
    box = grid.box_around(vessel.points_mm, float(vessel.radii_mm.max()) + reach)
    shape = tuple(side.stop - side.start for side in box)
    depth = np.full(shape, OUTSIDE_MM, dtype=np.float32)
    nearest = np.zeros(shape, dtype=np.int16)
    for first in range(0, len(vessel.points_mm), _CHUNK_POINTS):
        chunk = slice(first, first + _CHUNK_POINTS)
        points, radii = vessel.points_mm[chunk], vessel.radii_mm[chunk]
        near = grid.box_around(points, float(radii.max()) + reach)
        local = tuple(slice(n.start - b.start, n.stop - b.start) for n, b in zip(near, box, strict=True))
        deepest, which = _deepest(grid.axes(near), points, radii)
        won = deepest > depth[local]
        depth[local][won] = deepest[won]
        nearest[local][won] = which[won] + first
    _cut_flat(depth, nearest, grid.axes(box), vessel)
    return Tube(vessel, box, depth, nearest)


def _deepest(
    axes: Sequence[NDArray[np.float32]], points_mm: Points, radii_mm: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
    """The largest ``radius - distance`` over some points, and the number of that point."""
    shape = np.broadcast_shapes(*(axis.shape for axis in axes))
    best = np.full(shape, -np.inf, dtype=np.float32)
    which = np.zeros(shape, dtype=np.int16)
    for number, (point, radius) in enumerate(zip(points_mm.astype(np.float32), radii_mm, strict=True)):
        x, y, z = (axis - coordinate for axis, coordinate in zip(axes, point, strict=True))
        depth = np.float32(radius) - np.sqrt(z * z + (y * y + x * x))
        deeper = depth > best
        which[deeper] = number
        np.maximum(best, depth, out=best)
    return best, which


def _cut_flat(
    depth: NDArray[np.float32], nearest: NDArray[np.int16], axes: Sequence[NDArray[np.float32]], vessel: Vessel
) -> None:
    last = len(vessel.points_mm) - 1
    for end, outwards in ((0, -1.0), (last, 1.0)):
        if (end == 0) == bool(vessel.parent):
            continue
        here = np.nonzero((nearest == end) & (depth > OUTSIDE_MM))
        point, normal = vessel.points_mm[end], outwards * vessel.tangents[end]
        places = (here[2], here[1], here[0])
        offsets = [axis.ravel()[at] - along for axis, at, along in zip(axes, places, point, strict=True)]
        beyond = sum(offset * direction for offset, direction in zip(offsets, normal, strict=True))
        depth[here] = np.minimum(depth[here], -beyond)


def join(tubes: Iterable[Tube], shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Join tubes: depth under their common surface, crotches rounded; ``OUTSIDE_MM`` far from them."""
    union = np.full(shape, OUTSIDE_MM, dtype=np.float32)
    for tube in tubes:
        here = union[tube.box]
        overlap = np.maximum(np.float32(FILLET_MM) - np.abs(here - tube.depth_mm), 0)
        rounded = overlap * overlap * np.float32(0.25 / FILLET_MM)
        # Where neither is near, both have the same depth and nothing is to be rounded.
        rounded[np.minimum(here, tube.depth_mm) <= OUTSIDE_MM] = 0
        union[tube.box] = np.maximum(here, tube.depth_mm) + rounded
    return union


def label_of(tree: Tree, tubes: Sequence[Tube], union: NDArray[np.float32]) -> LabelMap:
    """Label the structure of every voxel whose centre is under the surface.

    Where vessels overlap, the aorta wins, then the tubes of the common and external iliac arteries, then side branches,
    and the deeper one of two of a rank.
    """
    label = np.zeros(union.shape, dtype=np.uint8)
    best = np.full(union.shape, -np.inf, dtype=np.float32)
    parents = {vessel.parent for vessel in tree.vessels}
    for tube in tubes:
        vessel = tube.vessel
        rank = 2 if not vessel.parent else int(vessel.name in parents)
        claim = tube.depth_mm + np.where(tube.depth_mm > 0, np.float32(1000 * rank), np.float32(0))
        won = claim > best[tube.box]
        parts = np.searchsorted(vessel.starts_mm, vessel.arc_mm, side="right") - 1
        values = np.array([STRUCTURES[part] for part in vessel.parts], dtype=np.uint8)[parts]
        label[tube.box][won] = values[tube.nearest[won]]
        best[tube.box][won] = claim[won]
    label[union <= 0] = 0
    return label
