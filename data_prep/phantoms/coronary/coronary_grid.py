"""Voxels of the coronary phantom: positions, distances to vessels, and shares filled by a shape."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.phantoms.coronary.coronary_heart import Tube
from data_prep.phantoms.curves import Points

Field = NDArray[np.float32]
"""A number at each voxel: a signed distance in millimetres (negative inside) or Hounsfield units."""


@dataclass(frozen=True)
class Grid:
    """Voxels along left, posterior and superior; ``origin_mm`` is the first one's centre from the heart's middle."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]

    def axes_mm(self) -> list[Field]:
        """Coordinates of the voxel centres along each axis, shaped to broadcast."""
        return [
            (origin + step * np.arange(size))
            .astype(np.float32)
            .reshape([-1 if other == axis else 1 for other in range(3)])
            for axis, (size, step, origin) in enumerate(zip(self.shape, self.spacing_mm, self.origin_mm, strict=True))
        ]

    def rotated(self, to_patient: NDArray[np.float64]) -> list[Field]:
        """Coordinates of the voxel centres in a frame that ``to_patient`` turns into the patient's."""
        axes, turn = self.axes_mm(), to_patient.astype(np.float32)
        return [axes[0] * turn[0, own] + axes[1] * turn[1, own] + axes[2] * turn[2, own] for own in range(3)]

    def part(self, box: tuple[slice, slice, slice]) -> "Grid":
        """The voxels of a box."""
        x, y, z = box
        shape = (x.stop - x.start, y.stop - y.start, z.stop - z.start)
        first, second, third = (
            origin + step * cut.start for origin, step, cut in zip(self.origin_mm, self.spacing_mm, box, strict=True)
        )
        return Grid(shape, self.spacing_mm, (first, second, third))

    def box(self, points_mm: Points, margin_mm: float) -> tuple[slice, slice, slice]:
        """The part of the grid that holds points with a margin; empty if they are outside."""
        first = (points_mm.min(axis=0) - margin_mm - self.origin_mm) / self.spacing_mm
        last = (points_mm.max(axis=0) + margin_mm - self.origin_mm) / self.spacing_mm
        start = np.clip(np.ceil(first), 0, self.shape).astype(int)
        stop = np.clip(np.floor(last) + 1, start, self.shape).astype(int)
        low, mid, high = (slice(*pair) for pair in zip(start.tolist(), stop.tolist(), strict=True))
        return low, mid, high


def distance_to_tubes(grid: Grid, tubes: Sequence[Tube], *, reach_mm: float, fillet_mm: float = 0.0) -> Field:
    r"""Signed distance from each voxel centre to the wall of the nearest tube, as far as ``reach_mm``.

    .. math:: d(x) = \min_i \lVert x - p_i \rVert - r_i

    over the points of a tube, which are so close that the wall between two of them is off by less than 1 % of the
    spacing. Where tubes meet, the corner between them is rounded by a smooth minimum that adds at most a quarter of
    ``fillet_mm``: a wedge thinner than a voxel would leave holes in a label.

    Args:
        grid: the voxels.
        tubes: centrelines in the patient's frame.
        reach_mm: largest distance; farther voxels have it, too.
        fillet_mm: difference of two distances from which on the smaller counts alone.
    """
    field = np.full(grid.shape, reach_mm, dtype=np.float32)
    for tube in tubes:
        box = grid.box(tube.centreline_mm, float(tube.radius_mm.max()) + reach_mm)
        if field[box].size:
            field[box] = _smooth_minimum(field[box], _distance_to_tube(grid, tube, box, reach_mm), fillet_mm)
    return field


def share_of_tube(grid: Grid, tube: Tube) -> tuple[tuple[slice, slice, slice], Field]:
    """The part of the grid around a tube, and the share of each of its voxels that the tube fills."""
    box = grid.box(tube.centreline_mm, float(tube.radius_mm.max()) + 2.0)
    part = grid.part(box)
    return box, coverage(distance_to_tubes(part, [tube], reach_mm=1.0), part)


def coverage(distance_mm: Field, grid: Grid) -> Field:
    """Share of each voxel inside a flat wall at a signed distance."""
    voxel_mm = np.float32(np.prod(grid.spacing_mm) ** (1 / 3))
    return np.clip(np.float32(0.5) - distance_mm / voxel_mm, 0, 1)


def blend(hu: Field, share: Field, value: NDArray[np.floating] | float) -> None:
    """Fill a share of each voxel with a tissue, in place."""
    hu += share * (np.asarray(value, dtype=np.float32) - hu)


def _distance_to_tube(grid: Grid, tube: Tube, box: tuple[slice, slice, slice], reach_mm: float) -> Field:
    local = grid.part(box)
    field = np.full(local.shape, reach_mm, dtype=np.float32)
    axes = local.axes_mm()
    for point, radius in zip(tube.centreline_mm, tube.radius_mm, strict=True):
        near = local.box(point[None], radius + reach_mm)
        part = field[near]
        if part.size:
            x, y, z = (
                np.square(axes[axis].take(range(cut.start, cut.stop), axis) - np.float32(point[axis]))
                for axis, cut in enumerate(near)
            )
            np.minimum(part, np.sqrt(x + y + z) - np.float32(radius), out=part)
    return field


def _smooth_minimum(one: Field, other: Field, fillet_mm: float) -> Field:
    least = np.minimum(one, other)
    if fillet_mm > 0:
        overlap = np.maximum(np.float32(fillet_mm) - np.abs(one - other), 0)
        least -= overlap * overlap / np.float32(4 * fillet_mm)
    return least
