"""Phases of a DICOM cine: several frames at each slice position."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uumamba.data.formats.dicom import make_volume, read_normal, read_position
from uumamba.data.formats.dicom_headers import TIMES, read_header
from uumamba.data.formats.dicom_series import Frame, find_frames
from uumamba.data.formats.dicom_studies import (
    SAME_POSITION_MM,
    DicomSeries,
    group_by_series,
    list_dicom_files,
    summarize_series,
)
from uumamba.data.formats.jpeg_process import JpegProcess
from uumamba.data.formats.stored_volume import StoredVolume
from uumamba.runtime.errors import CaseError, require_case

_EQUAL = ("ImageType", "EchoTime", "InversionTime", "DiffusionBValue")
_SHARE_OF_DOUBLES = 1.5  # frames per position; a still series with a double slice has fewer

Slices = list[list[Frame]]
"""Frames of each slice position."""


def has_phases(path: Path | DicomSeries) -> bool:
    """Return whether a folder or series has several frames at each position.

    Only headers are read. Damaged files and several series are no cine, so that the reader of scans names them.
    """
    try:
        files = path.files if isinstance(path, DicomSeries) else list_dicom_files(path) if path.is_dir() else (path,)
        headers = [header for file in files if (header := read_header(file, case_id=file.name))]
    except (OSError, CaseError):
        return False
    is_joined = isinstance(path, DicomSeries) and path.is_joined
    if not headers or (len(group_by_series(headers)) > 1 and not is_joined):
        return False
    summary = summarize_series(headers)
    return summary.slices > 0 and summary.images > _SHARE_OF_DOUBLES * summary.slices


def open_phases(
    path: Path | DicomSeries, *, case_id: str, process: JpegProcess | None = None
) -> tuple[tuple[StoredVolume, ...], tuple[float, ...] | None]:
    """Read headers of a cine: the phases' volumes and times in ms.

    The frames at each position are ordered by ``TriggerTime`` (of enhanced images ``NominalCardiacTriggerDelayTime``),
    or else by ``TemporalPositionIdentifier`` (``TemporalPositionIndex``), ``AcquisitionTime`` or ``InstanceNumber``: by
    the first one that differs between them. The time of a phase is its mean trigger time, since the heart rate differs
    from slice to slice; without trigger times it is unknown.

    Args:
        path: a folder with one series, a file, or a chosen series.
        case_id: name in errors.
        process: decoder of JPEG for all phases, which must last until the voxels are read.

    Raises:
        CaseError: as :func:`uumamba.data.formats.dicom.open_dicom`; or positions differ in their number of frames or in
            their times, two frames have one time, or frames differ in more than time.
    """
    folder = path.path if isinstance(path, DicomSeries) else path
    slices = _group_by_position(find_frames(path, case_id=case_id))
    _check_counts(slices, case_id)
    for keyword in _EQUAL:
        _require_equal(slices, keyword, case_id)
    keyword, times = _find_times(slices, case_id)
    orders = np.argsort(times, axis=1)
    ordered = [[frames[index] for index in order] for frames, order in zip(slices, orders, strict=True)]
    times = np.take_along_axis(times, orders, axis=1)
    _check_same_times(times, keyword, case_id)
    volumes = tuple(
        make_volume(phase, folder, case_id=case_id, process=process) for phase in zip(*ordered, strict=True)
    )
    return volumes, tuple(map(float, times.mean(axis=0))) if keyword == "TriggerTime" else None


def _group_by_position(frames: Sequence[Frame]) -> Slices:
    along = np.array([read_position(frame) for frame in frames]) @ read_normal(frames[0])
    order = np.argsort(along, kind="stable")
    places = np.cumsum(np.diff(along[order], prepend=along[order[0]]) > SAME_POSITION_MM)
    slices: Slices = [[] for _ in range(places[-1] + 1)]
    for place, index in zip(places, order, strict=True):
        slices[place].append(frames[index])
    return slices


def _check_counts(slices: Slices, case_id: str) -> None:
    """Check that all positions have the same number of phases."""
    counts = list(map(len, slices))
    usual = Counter(counts).most_common(1)[0][0]
    odd = [f"slice {place} with {count}" for place, count in enumerate(counts, start=1) if count != usual]
    require_case(
        not odd,
        case_id,
        "shape",
        got=f"a cine of different numbers of phases: {', '.join(odd[:5])}{', ...' if len(odd) > 5 else ''}",
        expected=f"{usual} phases, as in {counts.count(usual)} of {len(slices)} slices (counted along the normal)",
        fix="restore the missing files, or remove double ones or incomplete slices",
    )


def _require_equal(slices: Slices, keyword: str, case_id: str) -> None:
    values = max(({frame.header.texts[keyword] for frame in frames} for frames in slices), key=len)
    require_case(
        len(values) == 1,
        case_id,
        "file",
        got=f"frames at one position with {keyword} {' and '.join(sorted(values)[:3])}",
        expected="frames that differ in time only",
        fix="choose another series with --series, or give the files of one kind",
    )


def _find_times(slices: Slices, case_id: str) -> tuple[str, NDArray[np.float64]]:
    """Find the tag that orders each slice's frames; return its values."""
    for keyword in ("TriggerTime", "TemporalPositionIdentifier", "AcquisitionTime", "InstanceNumber"):
        values = np.array([[_read_time(frame, keyword) for frame in frames] for frames in slices])
        distinct = [len(set(row)) for row in values.tolist()]
        is_known = bool(np.isfinite(values).all())
        if is_known and min(distinct) == values.shape[1]:
            return keyword, values
        # Two acquisitions may start in one second, so equal times of acquisition are no fault.
        if is_known and max(distinct) > 1 and keyword != "AcquisitionTime":
            raise _make_double_error(slices, values, keyword, case_id)
    raise _make_double_error(slices, np.zeros(values.shape), "number or time", case_id)


def _read_time(frame: Frame, keyword: str) -> float:
    """Read the number that orders a frame; NaN if it is absent."""
    header = frame.header
    of_frame = {"TriggerTime": "NominalCardiacTriggerDelayTime", "TemporalPositionIdentifier": "TemporalPositionIndex"}
    if numbers := header.numbers.get(of_frame.get(keyword, ""), ()):
        return numbers[0]
    if keyword == "InstanceNumber" and len(header.frames) > 1:
        return float(frame.pixels.pieces[0][0])  # frames are stored in their order
    try:
        return float(header.times[TIMES.index(keyword)])
    except ValueError:
        return float("nan")


def _make_double_error(slices: Slices, values: NDArray[np.float64], keyword: str, case_id: str) -> CaseError:
    names = ""
    for frames, row in zip(slices, values.tolist(), strict=True):
        value, count = Counter(row).most_common(1)[0]
        if count > 1:
            double = [frame.header.path.name for frame, each in zip(frames, row, strict=True) if each == value]
            names = " and ".join(double[:2])
            break
    return CaseError(
        case_id,
        "shape",
        got=f"two frames at one position with one {keyword}: {names}",
        expected="frames of different times",
        fix="remove double files, or choose another series with --series",
    )


def _check_same_times(times: NDArray[np.float64], keyword: str, case_id: str) -> None:
    """Check that phases of one number belong together in all slices.

    Trigger times are compared as shares of the cycle, since the heart rate differs from slice to slice.
    """
    if keyword not in ("TriggerTime", "TemporalPositionIdentifier") or times.shape[1] < 3:
        return
    spans = np.ptp(times, axis=1, keepdims=True) if keyword == "TriggerTime" else 1
    shares = (times - times[:, :1]) / spans if keyword == "TriggerTime" else times
    apart = np.abs(shares - np.median(shares, axis=0))
    place, phase = np.unravel_index(int(apart.argmax()), apart.shape)
    limit = 0.5 / (times.shape[1] - 1) if keyword == "TriggerTime" else 0.5
    require_case(
        apart.max() < limit,
        case_id,
        "shape",
        got=f"slice {place + 1} with {keyword} {times[place, phase]:g} of phase {phase + 1}",
        expected=f"about {np.median(times[:, phase]):g}, as in the other slices",
        fix="restore missing files: every phase must have every slice",
    )
