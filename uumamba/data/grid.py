"""Scans on their native grids, and the check of a pair."""

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

Affine = NDArray[np.float64]
MAX_VOLUME_BYTES = 8 * 2**30
"""Largest uncompressed volume that is read."""


@dataclass(frozen=True)
class Scan:
    """A volume on its native grid.

    Args:
        array: three axes in stored order; float32 for an image (or its stored integers, if requested), uint8 for a
            label.
        affine: 4 x 4 float64, voxel index to RAS+ millimetres; physical even where the header's matrix is not.
        spacing_mm: of the array's axes.
        header: nibabel's, unchanged, of a NIfTI file; else None.
        path: source file or folder.
    """

    array: NDArray[Any]
    affine: Affine
    spacing_mm: SpacingMm
    header: Any
    path: Path


def check_same_grid(image: Scan, label: Scan, *, case_id: str) -> None:
    """Raise if an image and its label have different grids.

    Grids differ if their shapes differ or a corner is more than half a voxel apart. A smaller shift gives a warning,
    and the label's voxels are used on the image's grid, without resampling.

    Raises:
        CaseError: shapes or positions differ.
    """
    shape, fix = image.array.shape, "give the label of this image"
    require_case(
        label.array.shape == shape, case_id, "label", got=label.array.shape, expected=f"shape {shape}", fix=fix
    )
    apart = displacement_voxels(image.affine, label.affine, shape)
    require_case(
        apart <= 0.5,
        case_id,
        "affine",
        got=f"a label {apart:.1f} voxels off",
        expected="the image's grid within half a voxel",
        fix="resample the label to the image's grid, or correct its header",
    )
    if apart > 0.01:
        warn_repaired(
            case_id, f"image and label are {apart:.2f} voxels apart; the label's voxels are used on the image's grid"
        )


def check_size(announced: float, case_id: str, max_bytes: int) -> None:
    """Raise if a header announces more bytes than allowed.

    Raises:
        CaseError: it is larger.
    """
    require_case(
        announced <= max_bytes,
        case_id,
        "file",
        got=f"{announced / 2**30:.1f} GiB",
        expected=f"at most {max_bytes / 2**30:.1f} GiB",
        fix="crop or downsample the scan",
    )


def displacement_voxels(affine: Affine, other: Affine, shape: Sequence[int]) -> float:
    """Compute the largest displacement of a corner between two affines.

    The result is in voxels, along the axis where it is largest. Both maps are affine, so no voxel moves further than
    the furthest corner.

    Example:
        >>> shifted = np.diag([2.0, 2.0, 2.0, 1.0])
        >>> shifted[0, 3] = 1.0
        >>> displacement_voxels(np.diag([2.0, 2.0, 2.0, 1.0]), shifted, (4, 4, 4))
        0.5
    """
    corners = np.array([(*corner, 1) for corner in product(*((0, size - 1) for size in shape))], dtype=np.float64).T
    apart_mm = ((other - affine) @ corners)[:3]
    return float(np.abs(np.linalg.solve(affine[:3, :3], apart_mm)).max())
