"""Volume as the header of its file describes it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.runtime.errors import CaseError, require_case

Shape = tuple[int, int, int]
RESTORE = "restore the file from its source"
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
FRAME_MS = (5.0, 200.0)
"""Plausible times from one frame of a cine to the next; a heart cycle has 5 frames or more."""


@dataclass(frozen=True)
class StoredVolume:
    """Volume as the header of its file describes it; nothing is checked.

    Args:
        path: file or folder.
        shape: sizes of the three axes, in stored order.
        dtype: dtype of the stored voxels.
        directions: 3 x 3, the directions of the axes as columns, in RAS+; unit length is expected.
        origin_mm: position of the first voxel, in RAS+.
        spacing_mm: spacing of the axes; NaN where the header has none.
        spacing_key: the format's name of the spacing, for errors.
        voxels: function that reads the voxels, in stored order.
        is_complete: function that tells from the file's length whether all voxels can be there.
        header: header of nibabel for a NIfTI file, else None.
        channels: number of volumes, channels or frames; several are the first axis of ``voxels``.
        default_spacing_mm: spacing for a format without spacings, if the caller assumes none.
        has_palette: voxels are indices of colours, so they are label values but no intensities.
        frame_ms: time from one frame to the next, if it is known and plausible.
    """

    path: Path
    shape: Shape
    dtype: np.dtype[Any]
    directions: NDArray[np.float64]
    origin_mm: NDArray[np.float64]
    spacing_mm: NDArray[np.float64]
    spacing_key: str
    voxels: Callable[[], NDArray[Any]]
    is_complete: Callable[[], bool]
    header: Any = None
    channels: int = 1
    default_spacing_mm: NDArray[np.float64] | None = None
    has_palette: bool = False
    frame_ms: float | None = None


def drop_trailing_axes(sizes: tuple[int, ...], case_id: str) -> Shape:
    """Return the sizes of three axes; trailing axes must have one voxel.

    Raises:
        CaseError: there is no axis or more than seven, an axis has no voxel, or there are several frames or channels.
    """
    require_case(
        0 < len(sizes) <= 7 and min(sizes) > 0,
        case_id,
        "shape",
        got=sizes,
        expected="1 to 7 axes of at least 1 voxel",
        fix=RESTORE,
    )
    require_case(
        max(sizes[3:], default=1) == 1,
        case_id,
        "shape",
        got=sizes,
        expected="one 3-D volume of scalars",
        fix="save one frame as a 3-D scan, or name the channels in the data set's modality",
    )
    first, second, third = (*sizes, 1, 1)[:3]
    return first, second, third


def count_frames(sizes: tuple[int, ...]) -> int:
    """Return the size of the fourth of four axes, or 1.

    Trailing axes of one voxel do not count.

    Example:
        >>> count_frames((9, 9, 5, 12, 1)), count_frames((9, 9, 5)), count_frames((9, 9, 5, 12, 3))
        (12, 1, 1)
    """
    used = max((axis for axis, size in enumerate(sizes, start=1) if size != 1), default=0)
    return sizes[3] if used == 4 else 1


def find_frame_ms(step: float, unit_ms: float | None) -> float | None:
    """Return the time of a frame if plausible, or None.

    Args:
        step: spacing of the axis of time.
        unit_ms: milliseconds of its unit; without one the unit is a millisecond or second, whichever is plausible.

    Example:
        >>> find_frame_ms(0.03, 1000.0), find_frame_ms(30.0, None), find_frame_ms(1.0, None)
        (30.0, 30.0, None)
    """
    units = (1.0, 1000.0) if unit_ms is None else (unit_ms,)
    return next((step * unit for unit in units if FRAME_MS[0] <= step * unit <= FRAME_MS[1]), None)


def make_header_error(case_id: str, path: Path, reason: str, *, expected: str, fix: str = RESTORE) -> CaseError:
    """Make the error of a header that cannot be read."""
    return CaseError(case_id, "file", got=f"{path.name} with {reason}", expected=expected, fix=fix)
