"""Channels of an image, brought to the grid of the first."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from uumamba.data.formats.dicom_studies import DicomSeries
from uumamba.data.grid import AffineMatrix, Scan, displacement_voxels, format_spacing
from uumamba.data.warn import warn_repaired
from uumamba.runtime.errors import require_case

ONE_CHANNEL = ("image",)
"""Channels of an image whose only channel needs no name."""
_SAME_VOXELS = 0.01
_LARGEST_VOXELS = 0.5


def describe_channels(names: Sequence[str]) -> str:
    """List channels with their numbers.

    Example:
        >>> describe_channels(["T1", "FLAIR"])
        'channel 0 (T1), channel 1 (FLAIR)'
    """
    return ", ".join(f"channel {index} ({name})" for index, name in enumerate(names))


def check_channel_files(files: Sequence[Path | DicomSeries], names: Sequence[str], *, case_id: str) -> None:
    """Raise unless an image has a file for each channel or all.

    Raises:
        CaseError: the number of files is another one, or the file of a channel is missing.
    """
    require_case(
        len(files) in {1, len(names)},
        case_id,
        "image",
        got=f"{len(files)} files: {', '.join(path.name for path in files)}",
        expected=f"one file for each of {describe_channels(names)}" if len(names) > 1 else "one channel",
        fix="list the files of these channels, in this order",
    )
    for index, (path, name) in enumerate(zip(files, names, strict=False) if len(files) > 1 else ()):
        require_case(
            isinstance(path, DicomSeries) or path.exists(),
            case_id,
            f"channel {index} ({name})",
            got=str(path),
            expected="an existing file",
            fix="restore the file of this channel or correct its path",
        )


def stack_channels(scans: Iterable[Scan], names: Sequence[str], *, case_id: str) -> Scan:
    """Stack one scan per channel, on the grid of the first.

    A channel that is stored in another order or direction of axes is reordered. One on another grid is interpolated
    linearly, its border repeated, with one warning for all such channels of a case; its field of view must be that of
    the first channel within half a voxel of the coarser grid.

    Args:
        scans: the channels, read one after the other.
        names: their names.
        case_id: name in errors and warnings.

    Returns:
        The first scan with an array ``(C, *S)``: of the channels' integer type, or float32.

    Raises:
        CaseError: the fields of view differ.
    """
    each = iter(scans)
    first = next(each)
    stacked = _like(first.array, len(names), first.array.dtype)
    stacked[0] = first.array
    resampled = []
    for index, scan in enumerate(each, start=1):
        channel = f"channel {index} ({names[index]})"
        array, is_resampled = match_grid(scan, first, case_id=case_id, channel=channel)
        if is_resampled:
            resampled.append(channel)
        dtype = _find_common_dtype(stacked.dtype, array.dtype)
        stacked = stacked.astype(dtype, copy=False)
        stacked[index] = array
    if resampled:
        warn_repaired(case_id, f"{', '.join(resampled)}: on another grid, resampled to that of channel 0 ({names[0]})")
    return replace(first, array=stacked)


def match_grid(scan: Scan, first: Scan, *, case_id: str, channel: str) -> tuple[NDArray[Any], bool]:
    """Bring a channel's voxels to the first channel's grid.

    The second value is True if they are interpolated.

    Raises:
        CaseError: the corners of the fields of view are more than half a voxel apart.
    """
    turned = _turn(scan, first)
    if turned.shape == first.shape and displacement_voxels(first.affine, turned.affine, first.shape) <= _SAME_VOXELS:
        return turned.array, False
    apart = _compare_fields_of_view(turned, first)
    require_case(
        apart <= _LARGEST_VOXELS,
        case_id,
        channel,
        got=f"{_format_grid(scan)}, {apart:.1f} voxels between corners of the fields of view",
        expected=f"the field of view of channel 0, {_format_grid(first)}, within half a voxel",
        fix="resample the channel to the grid of the first one, or correct its header",
    )
    return _interpolate(turned, first), True


def _turn(scan: Scan, first: Scan) -> Scan:
    """Reorder and flip a scan's axes like the first channel's."""
    turn = io_orientation(np.linalg.solve(first.affine, scan.affine))
    if np.isnan(turn).any():
        return scan
    affine: AffineMatrix = scan.affine @ inv_ornt_aff(turn, scan.shape)
    spacing: Any = tuple(scan.spacing_mm[int(np.flatnonzero(turn[:, 0] == axis)[0])] for axis in range(3))
    return replace(scan, array=apply_orientation(scan.array, turn), affine=affine, spacing_mm=spacing)


def _compare_fields_of_view(scan: Scan, first: Scan) -> float:
    """Compute the largest distance between corners of the fields of view.

    The unit is the voxel of the coarser grid along each axis.
    """
    ends = [
        np.array([(*corner, 1.0) for corner in product(*((-0.5, size - 0.5) for size in each.shape))]).T
        for each in (scan, first)
    ]
    apart_mm = (scan.affine @ ends[0] - first.affine @ ends[1])[:3]
    apart = np.linalg.solve(first.affine[:3, :3], apart_mm) * np.array(first.spacing_mm)[:, None]
    coarser_mm = np.maximum(first.spacing_mm, scan.spacing_mm)[:, None]
    return float(np.abs(apart / coarser_mm).max())


def _interpolate(scan: Scan, first: Scan) -> NDArray[np.float32]:
    from scipy import ndimage  # here, because the import takes a tenth of a second and is rarely needed

    to_scan = np.linalg.solve(scan.affine, first.affine)
    found: NDArray[np.float32] = ndimage.affine_transform(
        scan.array.astype(np.float32),
        to_scan[:3, :3],
        to_scan[:3, 3],
        output_shape=first.shape,
        order=1,
        mode="nearest",
    )
    return found


def _like(array: NDArray[Any], channels: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Allocate channels of an array's shape, stored as in files.

    The first axis in space is the fastest.
    """
    return np.empty((channels, *array.shape[::-1]), dtype).transpose(0, 3, 2, 1)


def _find_common_dtype(*dtypes: np.dtype[Any]) -> np.dtype[Any]:
    """Return the integer type that holds all, or else float32."""
    common = np.result_type(*dtypes)
    return common if common.kind in "iu" else np.dtype(np.float32)


def _format_grid(scan: Scan) -> str:
    shape = " x ".join(map(str, scan.shape))
    return f"{shape} voxels of {format_spacing(np.array(scan.spacing_mm))} mm"
