"""Series of DICOM studies: their files, geometry and description."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.formats.dicom_headers import DicomHeader, format_value, has_magic

_SUFFIXES = ("", ".dcm", ".dicom", ".dic", ".ima")
_SAME_ORIENTATION = 0.02  # of direction cosines; the planes of a localizer differ by far more
SAME_POSITION_MM = 0.05
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_NO_SCANS = ("SEG", "RTDOSE", "RTIMAGE", "PR", "SR", "KO", "DOC", "OT")
_FEWEST_JOINED = 3
_LONGEST_LIST = 600  # characters, so that an error shows it whole


@dataclass(frozen=True)
class DicomSeries:
    """Files of the series of a study that can be meant.

    They are those of one series, or of several, which the reader refuses by name.

    Attributes:
        path: folder of the study.
        files: the files.
        is_joined: the series are the slices of one stack, a series each.
        choice: sentence on the series used and those left out; empty if there was no choice.
    """

    path: Path
    files: tuple[Path, ...]
    is_joined: bool = False
    choice: str = ""

    @property
    def name(self) -> str:
        """Name of the study's folder."""
        return self.path.name


@dataclass(frozen=True)
class SeriesSummary:
    """Geometry and description of a series.

    Attributes:
        uid: SeriesInstanceUID.
        number: SeriesNumber; empty if there is none.
        description: SeriesDescription without patient data.
        modality: such as MR.
        files: files of the series.
        images: number of frames in all files.
        slices: number of positions along the normal; 0 if planes differ in orientation or size.
        is_scan: neither a localizer nor a secondary capture or result.
        joined: number of series, of a stack of slices that are a series each.
    """

    uid: str
    number: str
    description: str
    modality: str
    files: tuple[Path, ...]
    images: int
    slices: int
    is_scan: bool
    joined: int = 1

    @property
    def geometry(self) -> str:
        """Number of slices and phases in words."""
        if self.slices == 0:
            return f"{self.images} planes of several orientations or sizes"
        phases, rest = divmod(self.images, self.slices)
        times = f" x {phases} phases" if phases > 1 and not rest else f" of {self.images} images" if rest else ""
        return f"{self.slices} slice{'s' * (self.slices > 1)}{times}"

    @property
    def short_name(self) -> str:
        """Number and description."""
        number = f"number {self.number}" if self.number else "without a number"
        return f"{number}{f' and {self.joined - 1} others' if self.joined > 1 else ''}, {self.description}"

    def __str__(self) -> str:
        uid = f"UID {self.uid}" if self.uid else "no UID"
        return f"{self.short_name}, {self.modality or 'no modality'}, {self.geometry}, {uid}"


def list_dicom_files(folder: Path) -> list[Path]:
    """List a folder's DICOM files.

    Hidden files, sub-folders and ``DICOMDIR`` are left out. A file without a suffix, or with ``.dcm``, ``.dicom``,
    ``.dic``, ``.ima`` or a number (the end of a UID), must be DICOM; a file with another suffix is listed if it begins
    as DICOM files do.

    Raises:
        OSError: a file or the folder cannot be read.
    """
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_dir())
    return [path for path in visible if path.name.upper() != "DICOMDIR" and (_must_be_dicom(path) or has_magic(path))]


def group_by_series(headers: Iterable[DicomHeader]) -> dict[str, list[DicomHeader]]:
    """Group headers by SeriesInstanceUID, in the order of SeriesNumber."""
    series: dict[str, list[DicomHeader]] = {}
    for header in headers:
        series.setdefault(header.texts["SeriesInstanceUID"], []).append(header)
    return dict(sorted(series.items(), key=lambda item: item[1][0].numbers["SeriesNumber"]))


def summarize_series(headers: Sequence[DicomHeader]) -> SeriesSummary:
    """Summarize a series from the headers of its files."""
    first = headers[0]
    modality, sop_class = first.texts["Modality"], first.texts["SOPClassUID"]
    is_localizer = any("LOCALIZER" in header.texts["ImageType"].upper() for header in headers)
    return SeriesSummary(
        uid=first.texts["SeriesInstanceUID"],
        number=format_value(first.numbers["SeriesNumber"]) if first.numbers["SeriesNumber"] else "",
        description=first.texts["SeriesDescription"],
        modality=modality,
        files=tuple(header.path for header in headers),
        images=sum(_count_frames(header) for header in headers),
        slices=_count_slices(headers),
        is_scan=not (is_localizer or modality in _NO_SCANS or f"{sop_class}.".startswith(f"{_SECONDARY_CAPTURE}.")),
    )


def join_slices(series: Sequence[SeriesSummary], headers: Mapping[str, Sequence[DicomHeader]]) -> list[SeriesSummary]:
    """Join series of one slice each, as scanners store cines, to stacks.

    The slices of a stack are parallel, of one size and described alike but for numbers; there are at least three
    positions. Series that belong to no stack are left out.

    Args:
        series: summaries of the series.
        headers: headers of each UID.
    """
    groups: dict[object, list[SeriesSummary]] = {}
    for each in series:
        groups.setdefault(_describe_plane(headers[each.uid][0]), []).append(each)
    stacks = [
        replace(summarize_series([header for each in group for header in headers[each.uid]]), joined=len(group))
        for group in groups.values()
        if all(each.slices == 1 for each in group)
    ]
    return [stack for stack in stacks if stack.slices >= _FEWEST_JOINED]


def list_series(series: Sequence[SeriesSummary]) -> str:
    """List series for a message, as many as it can show."""
    shown: list[str] = []
    for each in map(str, series):
        if shown and sum(map(len, shown)) + len(each) > _LONGEST_LIST:
            return "; ".join((*shown, f"and {len(series) - len(shown)} more"))
        shown.append(each)
    return "; ".join(shown)


def _describe_plane(header: DicomHeader) -> object:
    numbers = {**header.numbers, **(header.frames[0] if header.frames else {})}
    orientation = tuple(round(cosine, 3) for cosine in numbers["ImageOrientationPatient"])
    description = re.sub(r"\d+", "", header.texts["SeriesDescription"])
    return orientation, numbers["Rows"], numbers["Columns"], numbers["PixelSpacing"], description


def _must_be_dicom(path: Path) -> bool:
    suffix = path.suffix.lower()
    return suffix in _SUFFIXES or suffix[1:].isdecimal()


def _count_frames(header: DicomHeader) -> int:
    count = (*header.numbers["NumberOfFrames"], 1.0)[0]
    return len(header.frames) or (int(count) if 1 <= count < 2**31 else 1)


def _count_slices(headers: Sequence[DicomHeader]) -> int:
    """Count the positions of parallel planes along their normal."""
    planes = [{**header.numbers, **group} for header in headers for group in header.frames or ({},)]
    if len({(plane["Rows"], plane["Columns"]) for plane in planes}) > 1:
        return 0
    if len(planes) == 1:
        is_cine = any(planes[0][keyword] for keyword in ("FrameTime", "FrameTimeVector", "CineRate"))
        return 1 if is_cine else _count_frames(headers[0])
    orientations, positions = (_stack(planes, key) for key in ("ImageOrientationPatient", "ImagePositionPatient"))
    if orientations.shape[1:] != (6,) or positions.shape[1:] != (3,):
        return 0
    if np.abs(orientations - orientations[0]).max() > _SAME_ORIENTATION:
        return 0
    along = np.sort(positions @ np.cross(orientations[0, :3], orientations[0, 3:]))
    return 1 + int((np.diff(along) > SAME_POSITION_MM).sum())


def _stack(planes: Sequence[Mapping[str, Any]], keyword: str) -> NDArray[np.float64]:
    """Stack a tag's numbers.

    The result has no columns unless all planes have the same number of them.
    """
    values = [plane[keyword] for plane in planes]
    is_regular = len({len(value) for value in values}) == 1 and bool(np.isfinite(np.concatenate(values)).all())
    return np.array(values) if is_regular else np.empty((len(planes), 0))
