"""Frames of one DICOM series, equal in size, spacing and orientation."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from uumamba.data.formats.dicom_headers import DicomHeader, format_value, read_header
from uumamba.data.formats.dicom_pixels import StoredFrame, locate_frames
from uumamba.data.formats.dicom_studies import (
    DicomSeries,
    group_by_series,
    list_dicom_files,
    list_series,
    summarize_series,
)
from uumamba.data.formats.voxel_stream import make_read_error
from uumamba.runtime.errors import CaseError, require_case

_EQUAL = (
    *("SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "PixelRepresentation"),
    *("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"),
)
_TOLERANCE = 1e-4  # of spacings and directions, which some scanners round differently in each file


@dataclass(frozen=True)
class Frame:
    """One plane of a series.

    Args:
        header: the header of its file, with the numbers of this frame.
        pixels: place of its pixels.
    """

    header: DicomHeader
    pixels: StoredFrame


def find_frames(path: Path | DicomSeries, *, case_id: str) -> list[Frame]:
    """Find the frames of a DICOM file, folder or chosen series.

    Of a folder, every DICOM image is used; see :func:`uumamba.data.formats.dicom_studies.list_dicom_files`. Files
    without an image, as reports, are left out.

    Raises:
        CaseError: a file is damaged, or there is not exactly one series, or its frames differ in size or orientation.
    """
    folder = path.path if isinstance(path, DicomSeries) else path
    try:
        files = _list_files(path)
    except OSError as error:
        raise make_read_error(case_id, Path(error.filename or folder), error) from None
    headers = [header for file in files if (header := read_header(file, case_id=case_id))]
    if not (isinstance(path, DicomSeries) and path.is_joined):
        _require_one_series(headers, folder, case_id)
    frames = [frame for header in headers for frame in _split(header, is_alone=len(headers) == 1)]
    for keyword in _EQUAL:
        _require_equal(frames, keyword, case_id)
    return frames


def _list_files(path: Path | DicomSeries) -> Sequence[Path]:
    if isinstance(path, DicomSeries):
        return path.files
    return list_dicom_files(path) if path.is_dir() else [path]


def _require_one_series(headers: Sequence[DicomHeader], path: Path, case_id: str) -> None:
    series = [summarize_series(each) for each in group_by_series(headers).values()]
    require_case(
        len(series) == 1,
        case_id,
        "file",
        got=f"{path.name} with {len(series)} DICOM series{': ' if series else ''}{list_series(series)}",
        expected="one series",
        fix="choose one with --series UID (or a number or a part of a description)"
        if series
        else "give a folder with DICOM images, or a scan file (pictures as PNG)",
    )


def _split(header: DicomHeader, *, is_alone: bool) -> list[Frame]:
    """Split a file into frames.

    Several frames need a position each, unless they are the only file, in which they are stacked.
    """
    stored = locate_frames(header)
    if len(stored) == 1 and not header.frames:
        return [Frame(header, stored[0])]
    is_cine = any(header.numbers[keyword] for keyword in ("FrameTime", "FrameTimeVector", "CineRate"))
    header.require(not header.numbers["GridFrameOffsetVector"], "GridFrameOffsetVector", expected="a scan, not a dose")
    if is_cine and not header.frames:
        raise make_cine_error(header.case_id, len(stored))
    header.require(
        len(header.frames) == len(stored) or (is_alone and not header.frames),
        "NumberOfFrames",
        expected=f"a position for each frame, found {len(header.frames)}",
    )
    groups = header.frames or ({},) * len(stored)
    return [
        Frame(replace(header, numbers={**header.numbers, **group}), pixels)
        for group, pixels in zip(groups, stored, strict=True)
    ]


def make_cine_error(case_id: str, frames: int) -> CaseError:
    """Make the error of a scan with several frames in time."""
    return CaseError(
        case_id,
        "shape",
        got=f"a cine of {frames} frames",
        expected="one 3-D volume",
        fix="give a folder with the slices of one frame",
    )


def _require_equal(frames: Sequence[Frame], keyword: str, case_id: str) -> None:
    values = [frame.header.texts.get(keyword) or frame.header.numbers.get(keyword, ()) for frame in frames]
    (usual, count), *others = Counter(values).most_common()
    different = [value for value, _ in others if not _is_close(value, usual)]
    if not different:
        return
    odd = frames[values.index(different[0])].header
    odd.require(
        False,
        keyword,
        expected=f"{keyword} {format_value(usual)}, as in {count} of {len(frames)} slices",
        fix="remove the file, or give it in another folder",
    )


def _is_close(value: str | tuple[float, ...], other: str | tuple[float, ...]) -> bool:
    if isinstance(value, str) or isinstance(other, str) or len(value) != len(other):
        return value == other
    return np.allclose(value, other, rtol=_TOLERANCE, atol=_TOLERANCE)
