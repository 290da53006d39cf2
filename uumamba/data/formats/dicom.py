"""DICOM series and multi-frame files as volumes."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.formats.dicom_decoding import read_frames
from uumamba.data.formats.dicom_series import Frame, find_frames, make_cine_error
from uumamba.data.formats.dicom_studies import DicomSeries
from uumamba.data.formats.jpeg_process import JpegProcess
from uumamba.data.formats.stored_volume import LPS_TO_RAS, Shape, StoredVolume
from uumamba.runtime.errors import require_case

_STEP_TOLERANCE = 0.02  # of the mean step between slices
_UNIT_TOLERANCE = 1e-3
_LARGEST_COSINE = 0.01745  # 1 degree, as for the axes of any format
_ROUNDING = 3.5e-4  # 0.02 degrees; positions are written with few digits

Vector = NDArray[np.float64]


def open_dicom(path: Path | DicomSeries, *, case_id: str) -> StoredVolume:
    """Read the headers of a DICOM series, sorted by slice position.

    The third axis leads from the first to the last ``ImagePositionPatient``, so that a tilted gantry gives a sheared
    volume. Its spacing is the distance of slices; for a single slice and for frames without positions it is
    ``SpacingBetweenSlices``, or else ``SliceThickness``. Rescale slope and intercept are applied to each slice;
    integers stay integers if all slopes and intercepts are. For damage that cannot be found see
    :func:`uumamba.data.formats.dicom_pixels.locate_frames`.

    Args:
        path: a folder with one series, a file, or a chosen series.
        case_id: name in errors.

    Raises:
        CaseError: there is not exactly one series; slices are missing, double or of several times; slices differ in
            size, type or orientation; a tag is absent; or a file is damaged.
    """
    folder = path.path if isinstance(path, DicomSeries) else path
    return make_volume(find_frames(path, case_id=case_id), folder, case_id=case_id)


def make_volume(
    frames: Sequence[Frame], path: Path, *, case_id: str, process: JpegProcess | None = None
) -> StoredVolume:
    """Make the volume of the frames of one time.

    Args:
        frames: the frames, in any order.
        path: file or folder.
        case_id: name in errors.
        process: decoder of JPEG, which must last until the voxels are read; by default one of the volume's own.

    Raises:
        CaseError: as :func:`open_dicom`.
    """
    normal = _read_directions(frames[0])[:, 2]
    if _is_stack(frames):
        origin, third, step_mm = read_position(frames[0]), normal, _read_thickness(frames[0])
    else:
        frames, positions = _sort_frames(frames, normal)
        _check_positions(frames, positions, case_id)
        origin, third, step_mm = _fit_line(positions, _read_directions(frames[0])[:, 2])
    first = frames[0].header
    rows_mm, columns_mm = first.numbers["PixelSpacing"] if len(first.numbers["PixelSpacing"]) == 2 else (np.nan, np.nan)
    shape = first.read_integer("Columns", 1, 2**16), first.read_integer("Rows", 1, 2**16), len(frames)
    dtype = _find_dtype(frames)
    return StoredVolume(
        path=path,
        shape=shape,
        dtype=dtype,
        directions=LPS_TO_RAS[:, None] * np.column_stack([_read_directions(frames[0])[:, :2], third])
        + 0.0,  # no negative zeros
        origin_mm=LPS_TO_RAS * origin + 0.0,
        spacing_mm=np.array([columns_mm, rows_mm, step_mm]),
        spacing_key="PixelSpacing, SpacingBetweenSlices",
        voxels=partial(_read_voxels, frames, shape, dtype, case_id, process),
        is_complete=lambda: True,  # lengths were compared with the headers
    )


def _is_stack(frames: Sequence[Frame]) -> bool:
    """Return whether the header holds the distance of slices."""
    return len(frames) == 1 or (frames[0].header.path == frames[-1].header.path and not frames[0].header.frames)


def _read_directions(frame: Frame) -> Vector:
    """Read the directions of row, column and normal as columns.

    The last digits of orthogonal directions are corrected as in ITK.
    """
    cosines = np.array(frame.header.numbers["ImageOrientationPatient"])
    is_given = cosines.shape == (6,) and bool(np.isfinite(cosines).all())
    row, column = cosines.reshape(2, 3) if is_given else np.zeros((2, 3))
    lengths = np.linalg.norm([row, column], axis=1)
    frame.header.require(
        np.allclose(lengths, 1, rtol=0, atol=_UNIT_TOLERANCE) and abs(row @ column) <= _LARGEST_COSINE,
        "ImageOrientationPatient",
        expected="two orthogonal unit vectors",
        fix="export the series again, or give a NIfTI file",
    )
    normal = _scale_to_unit(np.cross(row, column))
    if abs(row @ column) <= _ROUNDING:
        row = _scale_to_unit(np.cross(column, normal))
        column = np.cross(normal, row)
    return np.column_stack([row, column, normal])


def _scale_to_unit(vector: Vector) -> Vector:
    return vector * (1 / np.sqrt((vector * vector).sum()))  # rounded as in ITK


def read_normal(frame: Frame) -> Vector:
    """Read the normal of a frame's plane."""
    return _read_directions(frame)[:, 2]


def read_position(frame: Frame) -> Vector:
    """Read the position of a frame's first pixel."""
    position = np.array(frame.header.numbers["ImagePositionPatient"])
    frame.header.require(
        position.shape == (3,) and np.isfinite(position).all(),
        "ImagePositionPatient",
        expected="three numbers",
        fix="export the series again, or give a NIfTI file",
    )
    return position


def _read_thickness(frame: Frame) -> float:
    numbers = frame.header.numbers
    return (numbers["SpacingBetweenSlices"] or numbers["SliceThickness"] or (float("nan"),))[0]


def _sort_frames(frames: Sequence[Frame], normal: Vector) -> tuple[list[Frame], Vector]:
    positions = np.array([read_position(frame) for frame in frames])
    order = np.argsort(positions @ normal, kind="stable")
    return [frames[index] for index in order], positions[order]


def _check_positions(frames: Sequence[Frame], positions: Vector, case_id: str) -> None:
    """Check that slices are on a straight line at equal distances."""
    steps = np.diff(positions, axis=0)
    distances = np.linalg.norm(steps, axis=1)
    is_double = distances <= _STEP_TOLERANCE * distances.max()
    if is_double.any():
        _refuse_double(frames, is_double, case_id)
    mean = (positions[-1] - positions[0]) / len(steps)
    step_mm = float(np.linalg.norm(mean))
    require_case(
        np.ptp(steps, axis=0).max() <= 2 * _STEP_TOLERANCE * step_mm,
        case_id,
        "spacing_mm",
        got=f"distances of {distances.min():.2f} to {distances.max():.2f} mm between slices",
        expected="equal distances on a straight line",
        fix="restore missing slices, or give slices of one orientation",
    )
    apart = float(np.linalg.norm(positions - positions[0] - np.arange(len(positions))[:, None] * mean, axis=1).max())
    require_case(
        apart <= step_mm / 2,
        case_id,
        "spacing_mm",
        got=f"a slice {apart:.2f} mm off its place between the first and the last",
        expected=f"at most half the distance of slices, {step_mm / 2:.2f} mm",
        fix="resample the series to equal distances",
    )


def _refuse_double(frames: Sequence[Frame], is_double: NDArray[np.bool_], case_id: str) -> None:
    places = np.concatenate([[0], np.cumsum(~is_double)])
    counts = np.bincount(places)
    moments = {(place, *frame.header.times, frame.pixels.pieces) for place, frame in zip(places, frames, strict=True)}
    if counts.min() > 1 and len(moments) == len(frames):
        raise make_cine_error(case_id, int(counts.max()))
    index = int(np.flatnonzero(is_double)[0])
    names = " and ".join(frame.header.path.name for frame in frames[index : index + 2])
    require_case(
        False,
        case_id,
        "spacing_mm",
        got=f"two slices at one position: {names}",
        expected="one slice at each position",
        fix="remove the double slice",
    )


def _fit_line(positions: Vector, normal: Vector) -> tuple[Vector, Vector, float]:
    """Return first position, direction and step of the slices."""
    line = positions[-1] - positions[0]
    length = float(np.linalg.norm(line))
    direction = line / length
    is_normal = bool(np.linalg.norm(direction - normal) <= _ROUNDING)
    return positions[0], normal if is_normal else direction, length / (len(positions) - 1)


def _read_scale(frame: Frame) -> tuple[float, float]:
    """Read slope and intercept; absent ones are 1 and 0."""
    header = frame.header
    slopes, intercepts = header.numbers["RescaleSlope"], header.numbers["RescaleIntercept"]
    slope, intercept = (*slopes, 1.0)[0], (*intercepts, 0.0)[0]
    has_table = header.texts["ModalityLUTSequence"]
    header.require(not has_table, "ModalityLUTSequence", expected="RescaleSlope and RescaleIntercept")
    header.require(slope > 0 and np.isfinite(slope), "RescaleSlope", expected="a positive number")
    header.require(np.isfinite(intercept), "RescaleIntercept", expected="a finite number")
    return slope, intercept


def _find_dtype(frames: Sequence[Frame]) -> np.dtype[Any]:
    """Find the smallest dtype for the scaled values of all frames.

    It is that of GDCM; values without any scaling keep their dtype.
    """
    scales = {(*_read_scale(frame), *frame.pixels.format.limits) for frame in frames}
    if {scale[:2] for scale in scales} == {(1.0, 0.0)}:
        return frames[0].pixels.format.dtype
    if not all(slope.is_integer() and intercept.is_integer() for slope, intercept, _, _ in scales):
        return np.dtype(np.float64)
    least = min(slope * low + intercept for slope, intercept, low, _ in scales)
    most = max(slope * high + intercept for slope, intercept, _, high in scales)
    for name in ("u1", "u2", "u4") if least >= 0 else ("i1", "i2", "i4"):
        if np.iinfo(name).min <= least and most <= np.iinfo(name).max:
            return np.dtype(name)
    return np.dtype(np.float64)


def _read_voxels(
    frames: Sequence[Frame], shape: Shape, dtype: np.dtype[Any], case_id: str, process: JpegProcess | None
) -> NDArray[Any]:
    voxels = np.empty(shape, dtype, order="F")
    stored = read_frames([frame.pixels for frame in frames], case_id, process)
    for index, (frame, values) in enumerate(zip(frames, stored, strict=True)):
        slope, intercept = _read_scale(frame)
        if dtype.kind == "f":
            values = values * slope + intercept
        elif (slope, intercept) != (1.0, 0.0):
            values = values.astype(np.int64) * int(slope) + int(intercept)
        voxels[:, :, index] = values.T
    return voxels
