"""Image and label volumes on their native grids."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.warn import warn_repaired
from uumamba.runtime.errors import require_case
from uumamba.types import SpacingMm

AffineMatrix = NDArray[np.float64]
Image = NDArray[np.float32]
MAX_VOLUME_BYTES = 8 * 2**30  # largest uncompressed volume that is read


@dataclass(frozen=True)
class Scan:
    """Image or label volume on its native grid, with an affine.

    Args:
        array: three axes in stored order; float32 for an image (or the stored integers, if requested), uint8 for a
            label. Several channels are a first axis, on the grid of the first channel.
        affine: 4 x 4 float64, voxel index to RAS+ millimetres; in millimetres even if the header's matrix is not.
        spacing_mm: spacing of the array's axes.
        header: unchanged header of nibabel for a NIfTI file, else None.
        path: source file or folder.
    """

    array: NDArray[Any]
    affine: AffineMatrix
    spacing_mm: SpacingMm
    header: Any
    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the three axes in space."""
        return self.array.shape[-3:]


def check_same_grid(image: Scan, label: Scan, *, case_id: str) -> None:
    """Check that an image and its label have the same grid.

    Grids differ if their shapes differ or a corner is more than half a voxel apart. A smaller shift gives a warning,
    and the label is used on the image's grid without resampling.

    Raises:
        CaseError: shapes or positions differ.
    """
    shape, fix = image.shape, "give the label of this image"
    require_case(
        label.array.shape == shape, case_id, "label", got=label.array.shape, expected=f"shape {shape}", fix=fix
    )
    apart = displacement_voxels(image.affine, label.affine, shape)
    require_case(
        apart <= 0.5,
        case_id,
        "affine",
        got=f"a distance of {apart:.1f} voxels between corners",
        expected="at most half a voxel between the grids of image and label",
        fix="resample the label to the image's grid, or correct its header",
    )
    if apart > 0.01:
        warn_repaired(case_id, f"image and label are {apart:.2f} voxels apart; the label is used on the image's grid")


def check_size(announced: float, case_id: str, max_bytes: int) -> None:
    """Check the size of a volume, as announced by its header.

    Raises:
        CaseError: the volume is larger than ``max_bytes``.
    """
    require_case(
        announced <= max_bytes,
        case_id,
        "file",
        got=f"{announced / 2**30:.1f} GiB",
        expected=f"at most {max_bytes / 2**30:.1f} GiB",
        fix="crop or downsample the scan",
    )


def displacement_voxels(affine: AffineMatrix, other: AffineMatrix, shape: Sequence[int]) -> float:
    """Compute the largest displacement of a corner between two affines.

    The result is in voxels, along the axis of the largest displacement. Both maps are affine, so no voxel is displaced
    more than the corners.

    Example:
        >>> shifted = np.diag([2.0, 2.0, 2.0, 1.0])
        >>> shifted[0, 3] = 1.0
        >>> displacement_voxels(np.diag([2.0, 2.0, 2.0, 1.0]), shifted, (4, 4, 4))
        0.5
    """
    corners = np.array([(*corner, 1) for corner in product(*((0, size - 1) for size in shape))], dtype=np.float64).T
    return float(np.abs(np.linalg.solve(affine[:3, :3], ((other - affine) @ corners)[:3])).max())


def format_spacing(spacing_mm: NDArray[Any]) -> str:
    """Format three numbers for a message.

    Example:
        >>> format_spacing(np.array([1.5, 1.5, 10.0]))
        '1.5 x 1.5 x 10'
    """
    return " x ".join(f"{mm:.4g}" for mm in spacing_mm)
