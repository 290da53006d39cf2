"""Voxel grid of the coronary phantom: positions, distances and partial volumes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.phantoms.coronary.coronary_heart import Tube
from data_prep.phantoms.curves import Points
from data_prep.phantoms.scanner_noise import Field


@dataclass(frozen=True)
class CoronaryGrid:
    """Voxels along left, posterior and superior.

    ``origin_mm`` is the centre of the first voxel, relative to the heart's centre.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]

    def axes_mm(self) -> list[Field]:
        """Compute the voxel centres along each axis, shaped to broadcast."""
        return [
            (origin + step * np.arange(size))
            .astype(np.float32)
            .reshape([-1 if other == axis else 1 for other in range(3)])
            for axis, (size, step, origin) in enumerate(zip(self.shape, self.spacing_mm, self.origin_mm, strict=True))
        ]

    def rotate_axes(self, to_patient: NDArray[np.float64]) -> list[Field]:
        """Compute the voxel centres in a rotate_axes frame.

        Args:
            to_patient: rotation from that frame to the patient's.
        """
        axes, turn = self.axes_mm(), to_patient.astype(np.float32)
        return [axes[0] * turn[0, own] + axes[1] * turn[1, own] + axes[2] * turn[2, own] for own in range(3)]

    def crop(self, box: tuple[slice, slice, slice]) -> "CoronaryGrid":
        """Return the grid of a box."""
        x, y, z = box
        shape = (x.stop - x.start, y.stop - y.start, z.stop - z.start)
        first, second, third = (
            origin + step * cut.start for origin, step, cut in zip(self.origin_mm, self.spacing_mm, box, strict=True)
        )
        return CoronaryGrid(shape, self.spacing_mm, (first, second, third))

    def bounding_box(self, points_mm: Points, margin_mm: float) -> tuple[slice, slice, slice]:
        """Return the points' bounding box with a margin, clipped to the grid.

        The box of points outside of the grid is empty.
        """
        first = (points_mm.min(axis=0) - margin_mm - self.origin_mm) / self.spacing_mm
        last = (points_mm.max(axis=0) + margin_mm - self.origin_mm) / self.spacing_mm
        start = np.clip(np.ceil(first), 0, self.shape).astype(int)
        stop = np.clip(np.floor(last) + 1, start, self.shape).astype(int)
        low, mid, high = (slice(*pair) for pair in zip(start.tolist(), stop.tolist(), strict=True))
        return low, mid, high


def compute_distance(grid: CoronaryGrid, tubes: Sequence[Tube], *, limit_mm: float, fillet_mm: float = 0.0) -> Field:
    r"""Compute the signed distance from each voxel centre to the nearest wall.

    .. math:: d(x) = \min_i \lVert x - p_i \rVert - r_i

    over the points of a tube, which are so dense that the wall between two points is off by less than 1 % of the
    spacing. The corner between two tubes is rounded by a smooth minimum, which lowers the distance by at most a quarter
    of ``fillet_mm``: a wedge thinner than a voxel would leave holes in a label.

    Args:
        grid: the voxels.
        tubes: tubes in the patient's frame.
        limit_mm: largest distance, to which all others are clipped.
        fillet_mm: difference of two distances above which the smaller one is not changed.
    """
    field = np.full(grid.shape, limit_mm, dtype=np.float32)
    for tube in tubes:
        box = grid.bounding_box(tube.centreline_mm, float(tube.radius_mm.max()) + limit_mm)
        if field[box].size:
            field[box] = _compute_smooth_minimum(
                field[box], _compute_tube_distance(grid, tube, box, limit_mm), fillet_mm
            )
    return field


def compute_tube_share(grid: CoronaryGrid, tube: Tube) -> tuple[tuple[slice, slice, slice], Field]:
    """Compute the share of each voxel that a tube fills.

    Returns:
        A box around the tube, and the shares of its voxels.
    """
    box = grid.bounding_box(tube.centreline_mm, float(tube.radius_mm.max()) + 2.0)
    part = grid.crop(box)
    return box, compute_share(compute_distance(part, [tube], limit_mm=1.0), part)


def compute_share(distance_mm: Field, grid: CoronaryGrid) -> Field:
    """Compute the share of each voxel inside a wall (partial volume).

    The wall is treated as flat within a voxel.
    """
    voxel_mm = np.float32(np.prod(grid.spacing_mm) ** (1 / 3))
    return np.clip(np.float32(0.5) - distance_mm / voxel_mm, 0, 1)


def blend(hu: Field, share: Field, value: NDArray[np.floating] | float) -> None:
    """Blend a share of a tissue into each voxel, in place."""
    hu += share * (np.asarray(value, dtype=np.float32) - hu)


def paint(hu: Field, grid: CoronaryGrid, *layers: tuple[Field, NDArray[np.floating] | float]) -> None:
    """Blend tissues into the image, one over the other.

    Args:
        hu: the image, changed in place.
        grid: voxels of the image.
        layers: signed distance to the tissue's surface (negative inside), and Hounsfield units.
    """
    for distance_mm, value in layers:
        blend(hu, compute_share(distance_mm, grid), value)


def _compute_tube_distance(grid: CoronaryGrid, tube: Tube, box: tuple[slice, slice, slice], limit_mm: float) -> Field:
    local = grid.crop(box)
    field = np.full(local.shape, limit_mm, dtype=np.float32)
    axes = local.axes_mm()
    for point, radius in zip(tube.centreline_mm, tube.radius_mm, strict=True):
        near = local.bounding_box(point[None], radius + limit_mm)
        part = field[near]
        if part.size:
            x, y, z = (
                np.square(axes[axis].take(range(cut.start, cut.stop), axis) - np.float32(point[axis]))
                for axis, cut in enumerate(near)
            )
            np.minimum(part, np.sqrt(x + y + z) - np.float32(radius), out=part)
    return field


def _compute_smooth_minimum(one: Field, other: Field, fillet_mm: float) -> Field:
    least = np.minimum(one, other)
    if fillet_mm > 0:
        overlap = np.maximum(np.float32(fillet_mm) - np.abs(one - other), 0)
        least -= overlap * overlap / np.float32(4 * fillet_mm)
    return least
