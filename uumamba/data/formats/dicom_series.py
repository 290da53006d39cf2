"""Frames of one DICOM series, equal in size, spacing and orientation."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from uumamba.data.formats.dicom_headers import DicomHeader, format_value, has_magic, read_header
from uumamba.data.formats.dicom_pixels import StoredFrame, locate_frames
from uumamba.data.formats.voxel_stream import make_read_error
from uumamba.runtime.errors import CaseError, require_case

_SUFFIXES = ("", ".dcm", ".dicom", ".dic", ".ima")
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


def find_frames(path: Path, *, case_id: str) -> list[Frame]:
    """Find the frames of a DICOM file or of a folder's series.

    Of a folder, every DICOM image is used. Hidden files, subfolders, ``DICOMDIR`` and files without an image, as
    reports, are left out. A file without a suffix, or with ``.dcm``, ``.dicom``, ``.dic``, ``.ima`` or a number (the
    end of a UID), must be DICOM; a file with another suffix is used if it begins as DICOM files do.

    Raises:
        CaseError: a file is damaged, or there is not exactly one series, or its frames differ in size or orientation.
    """
    try:
        files = _list_files(path) if path.is_dir() else [path]
    except OSError as error:
        raise make_read_error(case_id, Path(error.filename or path), error) from None
    headers = [header for file in files if (header := read_header(file, case_id=case_id))]
    _require_one_series(headers, path, case_id)
    frames = [frame for header in headers for frame in _split(header, is_alone=len(headers) == 1)]
    for keyword in _EQUAL:
        _require_equal(frames, keyword, case_id)
    return frames


def _list_files(folder: Path) -> list[Path]:
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_dir())
    return [path for path in visible if path.name.upper() != "DICOMDIR" and (_must_be_dicom(path) or has_magic(path))]


def _must_be_dicom(path: Path) -> bool:
    suffix = path.suffix.lower()
    return suffix in _SUFFIXES or suffix[1:].isdecimal()


def _require_one_series(headers: Sequence[DicomHeader], path: Path, case_id: str) -> None:
    series: dict[str, list[DicomHeader]] = {}
    for header in headers:
        series.setdefault(header.texts["SeriesInstanceUID"], []).append(header)
    listed = [_describe(each) for each in sorted(series.values(), key=lambda each: each[0].numbers["SeriesNumber"])]
    require_case(
        len(series) == 1,
        case_id,
        "file",
        got=f"{path.name} with {len(series)} DICOM series{': ' if listed else ''}{'; '.join(listed[:5])}"
        + ("; ..." if len(listed) > 5 else ""),
        expected="one series",
        fix="give a folder with one series, or a scan file (pictures as PNG)",
    )


def _describe(headers: Sequence[DicomHeader]) -> str:
    number = headers[0].numbers["SeriesNumber"]
    name = f"number {format_value(number)}" if number else "without a number"
    return f"{name}, {headers[0].texts['SeriesDescription']}, {len(headers)} files"


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
