"""Vessels of the aorta phantom on the voxel grid, and their label."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.aorta import STRUCTURES
from data_prep.phantoms.aorta.aorta_vessels import Tree, Vessel
from data_prep.phantoms.curves import Points
from data_prep.phantoms.scanner_noise import Field
from uumamba.types import LabelMap

FILLET_MM = 4.0
"""Size of the fillets at bifurcations, which fill gaps narrower than half of it."""
OUTSIDE_MM = -8.0
"""Depth of voxels far from every vessel."""
_CHUNK_POINTS = 8
_Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class AortaGrid:
    """Volume of 1 mm voxels, ``(z, y, x)``.

    x grows to the patient's left, y to the back, z to the head.

    Args:
        shape: ``(z, y, x)``.
        first_mm: world coordinates, RAS+, of the first voxel's centre.
    """

    shape: tuple[int, int, int]
    first_mm: tuple[float, float, float]

    def axes(self, box: _Box | None = None, *, step: int = 1) -> tuple[Field, ...]:
        """Compute world coordinates x, y, z of voxel centres.

        Args:
            box: part of the grid; None for all of it.
            step: edge in voxels of the cubes whose centres are returned; the last cubes may extend beyond the volume.

        Returns:
            Three arrays that broadcast over ``(z, y, x)``.
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

    def bounding_box(self, points_mm: Points, margin_mm: float) -> _Box:
        """Return the points' bounding box with a margin, clipped to the volume."""
        low, high = points_mm.min(axis=0) - margin_mm, points_mm.max(axis=0) + margin_mm
        right, front, head = self.first_mm
        bounds = ((low[2] - head, high[2] - head), (front - high[1], front - low[1]), (right - high[0], right - low[0]))
        z, y, x = (
            slice(int(np.clip(np.ceil(low), 0, size)), int(np.clip(np.floor(high) + 1, 0, size)))
            for (low, high), size in zip(bounds, self.shape, strict=True)
        )
        return z, y, x


@dataclass(frozen=True)
class VesselDepth:
    """Depth map of a vessel in a box of the grid.

    Both arrays extend ``-OUTSIDE_MM`` beyond the surface.

    Args:
        vessel: the vessel.
        box: part of the grid.
        depth_mm: depth of each voxel under the vessel's surface, negative outside.
        nearest: index of the centreline point that gives the depth.
    """

    vessel: Vessel
    box: _Box
    depth_mm: Field
    nearest: NDArray[np.int16]


def compute_depth(vessel: Vessel, grid: AortaGrid) -> VesselDepth:
    """Compute the depth map of a vessel on the grid.

    Depth is the largest of ``radius - distance`` over the centreline's points. The ends are cut flat, except for the
    start of a branch, inside its parent, and the lower end of the aorta: rounded, the last zone extends to the
    bifurcation of the iliac arteries.
    """
    margin_mm = -OUTSIDE_MM
    box = grid.bounding_box(vessel.points_mm, float(vessel.radii_mm.max()) + margin_mm)
    shape = tuple(side.stop - side.start for side in box)
    depth = np.full(shape, OUTSIDE_MM, dtype=np.float32)
    nearest = np.zeros(shape, dtype=np.int16)
    for first in range(0, len(vessel.points_mm), _CHUNK_POINTS):
        chunk = slice(first, first + _CHUNK_POINTS)
        points, radii = vessel.points_mm[chunk], vessel.radii_mm[chunk]
        near = grid.bounding_box(points, float(radii.max()) + margin_mm)
        local = tuple(slice(n.start - b.start, n.stop - b.start) for n, b in zip(near, box, strict=True))
        deepest, which = _find_deepest(grid.axes(near), points, radii)
        won = deepest > depth[local]
        depth[local][won] = deepest[won]
        nearest[local][won] = which[won] + first
    _cut_flat(depth, nearest, grid.axes(box), vessel)
    return VesselDepth(vessel, box, depth, nearest)


def _find_deepest(
    axes: Sequence[Field], points_mm: Points, radii_mm: NDArray[np.float64]
) -> tuple[Field, NDArray[np.int16]]:
    """Compute the largest ``radius - distance`` over points, and its point's index."""
    shape = np.broadcast_shapes(*(axis.shape for axis in axes))
    best = np.full(shape, -np.inf, dtype=np.float32)
    which = np.zeros(shape, dtype=np.int16)
    for number, (point, radius) in enumerate(zip(points_mm.astype(np.float32), radii_mm, strict=True)):
        x, y, z = (axis - coordinate for axis, coordinate in zip(axes, point, strict=True))
        depth = np.float32(radius) - np.sqrt(z * z + (y * y + x * x))
        which[depth > best] = number
        np.maximum(best, depth, out=best)
    return best, which


def _cut_flat(depth: Field, nearest: NDArray[np.int16], axes: Sequence[Field], vessel: Vessel) -> None:
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


def join_depths(tubes: Iterable[VesselDepth], shape: tuple[int, int, int]) -> Field:
    """Join depth maps, with fillets at bifurcations.

    Returns:
        Depth under the common surface, ``OUTSIDE_MM`` far from it.
    """
    union = np.full(shape, OUTSIDE_MM, dtype=np.float32)
    for tube in tubes:
        here = union[tube.box]
        overlap = np.maximum(np.float32(FILLET_MM) - np.abs(here - tube.depth_mm), 0)
        rounded = overlap * overlap * np.float32(0.25 / FILLET_MM)
        # Far from both vessels the depths are equal, but there is no corner.
        rounded[np.minimum(here, tube.depth_mm) <= OUTSIDE_MM] = 0
        union[tube.box] = np.maximum(here, tube.depth_mm) + rounded
    return union


def label_vessels(tree: Tree, tubes: Sequence[VesselDepth], union: Field) -> LabelMap:
    """Label every voxel whose centre is under the joint surface.

    Where vessels overlap, the aorta takes precedence, then common and external iliac arteries, then side branches.
    Between two vessels of one rank the deeper one takes precedence.
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
