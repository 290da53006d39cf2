"""Geometry of a prepared array: orientation, crop and grid, and their inverse."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from pydantic import ConfigDict

from uumamba.data.grid import format_spacing
from uumamba.runtime.errors import require

Element = TypeVar("Element", bound=np.generic)
Box = tuple[tuple[int, int, int], tuple[int, int, int]]
_TIE = 1e-3  # relative difference below which spacings are equal
_SPACING_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Geometry:
    """Geometry that maps a prepared array back to its scan.

    The geometry holds the native grid, the permutation to ``(Z, Y, X)``, the crop and the prepared grid. It is stored
    as the plain values of its fields (``dataclasses.asdict``). Spacings are in the order of the array's axes. The crop
    refers to the oriented, uncropped grid.

    Args:
        native_shape: shape of the scan as stored.
        affine: 4 x 4, native voxel index to RAS+ millimetres, row by row.
        spacing_mm: spacing of the native axes.
        axes: prepared axis ``i`` is native axis ``axes[i]``.
        flips: True if prepared axis ``i`` runs against that native axis.
        crop_start: first voxel of the crop.
        crop_stop: first voxel after the crop.
        oriented_spacing_mm: spacing of the oriented axes.
        prepared_spacing_mm: spacing of the prepared axes, exactly the crop's extent divided by its new size.
        prepared_shape: ``(Z, Y, X)``.
    """

    native_shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    spacing_mm: tuple[float, float, float]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    crop_start: tuple[int, int, int]
    crop_stop: tuple[int, int, int]
    oriented_spacing_mm: tuple[float, float, float]
    prepared_spacing_mm: tuple[float, float, float]
    prepared_shape: tuple[int, int, int]

    __pydantic_config__ = ConfigDict(extra="forbid")

    @property
    def oriented_shape(self) -> tuple[int, int, int]:
        """Uncropped shape in the order of the prepared axes."""
        return _triple(self.native_shape[axis] for axis in self.axes)

    @property
    def cropped_shape(self) -> tuple[int, int, int]:
        """Shape of the crop before resampling."""
        return _triple(stop - start for start, stop in zip(self.crop_start, self.crop_stop, strict=True))

    @property
    def crop(self) -> tuple[slice, slice, slice]:
        """Crop as slices of an oriented array."""
        return _triple(map(slice, self.crop_start, self.crop_stop))

    def orient(self, native: NDArray[Element]) -> NDArray[Element]:
        """View a native array in the axis order ``(Z, Y, X)``.

        Leading axes stay first.
        """
        leading = native.ndim - 3
        return native.transpose(*range(leading), *(leading + axis for axis in self.axes))[_steps(self.flips)]

    def unorient(self, oriented: NDArray[Element]) -> NDArray[Element]:
        """Undo :meth:`orient`: ``geometry.unorient(geometry.orient(x))`` is ``x``."""
        leading = oriented.ndim - 3
        back = (leading + position for position in np.argsort(self.axes))
        return oriented[_steps(self.flips)].transpose(*range(leading), *map(int, back))

    def with_crop(self, box: Box, *, target_spacing_mm: Sequence[float | None]) -> "Geometry":
        """Crop to a box, and choose the prepared grid.

        Args:
            box: first voxel of the oriented grid, and first voxel after the box.
            target_spacing_mm: wanted spacing; the nearest spacing that fills the box exactly is used. None keeps the
                axis unchanged.
        """
        cropped = replace(self, crop_start=_triple(box[0]), crop_stop=_triple(box[1]))
        old, shape = self.oriented_spacing_mm, cropped.cropped_shape
        size = _triple(
            before if target_mm is None else max(1, round(before * mm / target_mm))
            for before, mm, target_mm in zip(shape, old, target_spacing_mm, strict=True)
        )
        return replace(
            cropped,
            prepared_shape=size,
            prepared_spacing_mm=_triple(
                mm * before / after for mm, before, after in zip(old, shape, size, strict=True)
            ),
        )


def find_geometry(
    native_shape: Sequence[int], *, spacing_mm: Sequence[float], affine: NDArray[np.float64] | None = None
) -> Geometry:
    """Find the geometry of an uncropped scan on its native grid.

    The native axes are matched to the nearest of R, A and S. The axis with the largest spacing is the through-plane
    axis and comes first; among equal spacings the axis nearest to S. The other axes follow in the order S, A, R, so an
    axial scan becomes (S, A, R) = ``(z, y, x)``. Without an affine, the native axes are R, A, S.

    Args:
        native_shape: three sizes.
        spacing_mm: spacing of the native axes.
        affine: 4 x 4, native voxel index to RAS+ millimetres.

    Raises:
        UsageError: there are not three sizes or three positive spacings; or the affine maps two axes onto one
            direction, or has another spacing.

    Example:
        >>> geometry = find_geometry((216, 256, 10), spacing_mm=(1.5, 1.5, 10.0), affine=np.diag([-1.5, -1.5, 10.0, 1]))
        >>> geometry.axes, geometry.flips
        ((2, 1, 0), (False, True, True))
    """
    require(len(native_shape) == 3, "native_shape", got=tuple(native_shape), expected="three sizes")
    require(
        len(spacing_mm) == 3 and all(np.isfinite(mm) and mm > 0 for mm in spacing_mm),
        "spacing_mm",
        got=tuple(spacing_mm),
        expected="three positive numbers",
    )
    shape, spacing = _triple(map(int, native_shape)), _triple(map(float, spacing_mm))
    matrix = np.diag([*spacing, 1.0]) if affine is None else np.asarray(affine, dtype=np.float64)
    orientation = io_orientation(matrix)
    require(
        matrix.shape == (4, 4) and not np.isnan(orientation).any(),
        "affine",
        got=matrix.tolist(),
        expected="a 4 x 4 matrix with three independent directions",
    )
    require(
        np.allclose(np.linalg.norm(matrix[:3, :3], axis=0), spacing, rtol=_SPACING_TOLERANCE, atol=0),
        "affine",
        got=f"columns of length {format_spacing(np.linalg.norm(matrix[:3, :3], axis=0))}",
        expected=f"the spacing {format_spacing(np.asarray(spacing))} mm",
        fix="take both from uumamba.data.read_image (headers of ACDC disagree), or leave out the affine",
    )
    native_of = {int(canonical): axis for axis, (canonical, _) in enumerate(orientation)}
    through = max(c for c in range(3) if spacing[native_of[c]] >= max(spacing) * (1 - _TIE))
    order = [through, *(canonical for canonical in (2, 1, 0) if canonical != through)]
    axes = _triple(native_of[canonical] for canonical in order)
    oriented_spacing = _triple(spacing[axis] for axis in axes)
    oriented_shape = _triple(shape[axis] for axis in axes)
    return Geometry(
        native_shape=shape,
        affine=tuple(tuple(float(value) for value in row) for row in matrix),
        spacing_mm=spacing,
        axes=axes,
        flips=_triple(bool(orientation[axis, 1] < 0) for axis in axes),
        crop_start=(0, 0, 0),
        crop_stop=oriented_shape,
        oriented_spacing_mm=oriented_spacing,
        prepared_spacing_mm=oriented_spacing,
        prepared_shape=oriented_shape,
    )


def _steps(flips: Sequence[bool]) -> tuple[Any, ...]:
    return (..., *(slice(None, None, -1 if flip else 1) for flip in flips))


def _triple(values: Any) -> Any:
    first, second, third = values
    return first, second, third
