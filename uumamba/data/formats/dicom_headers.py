"""Headers of DICOM files, read with limits and as plain numbers."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from uumamba.data.formats.stored_volume import RESTORE, make_header_error
from uumamba.data.formats.voxel_stream import make_read_error
from uumamba.runtime.errors import CaseError, require_case

MAX_HEADER_BYTES = 8 * 2**20
_MAX_ITEMS = 50_000  # of sequences; each takes a kilobyte in memory
_ITEM_TAGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # little and big endian
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_GEOMETRY = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SpacingBetweenSlices", "SliceThickness"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameContentSequence": ("TemporalPositionIndex",),
    "CardiacSynchronizationSequence": ("NominalCardiacTriggerDelayTime",),
}
_FRAME_TIMES = ("TemporalPositionIndex", "NominalCardiacTriggerDelayTime")
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_NUMBERS = (
    *(keyword for keywords in _GEOMETRY.values() for keyword in keywords if keyword not in _FRAME_TIMES),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "FrameTime", "FrameTimeVector", "CineRate", "SeriesNumber"),
    "GridFrameOffsetVector",
)
_TEXTS = (
    *("PhotometricInterpretation", "SOPClassUID", "SeriesInstanceUID", "SeriesDescription", "ModalityLUTSequence"),
    *("StudyInstanceUID", "Modality", "ImageType", "EchoTime", "InversionTime", "DiffusionBValue"),
)
TIMES = ("TriggerTime", "InstanceNumber", "AcquisitionTime", "TemporalPositionIdentifier")
_IDENTITY = ("PatientName", "PatientID", "PatientBirthDate", "OtherPatientNames")  # only to keep them out of messages
_HIDDEN = "without a description"

Numbers = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class DicomHeader:
    """Header of a DICOM image, up to its pixels.

    Args:
        path: the file.
        case_id: name in errors.
        numbers: numbers of each tag; none if the tag is absent or empty.
        texts: text of some tags, not of the patient's; empty if the tag is absent.
        times: text of the tags in which the frames of a cine differ.
        frames: numbers of each frame of an enhanced multi-frame image, else empty.
        syntax: UID of the transfer syntax.
        pixels_start: position of the element with the pixels.
    """

    path: Path
    case_id: str
    numbers: Numbers
    texts: Mapping[str, str]
    times: tuple[str, ...]
    frames: tuple[Numbers, ...]
    syntax: str
    pixels_start: int

    @property
    def instance_number(self) -> str:
        """Text of InstanceNumber; empty if there is none."""
        return self.times[TIMES.index("InstanceNumber")]

    def require(self, condition: object, keyword: str, *, expected: str, fix: str = RESTORE) -> None:
        """Raise a case's error with a tag's value unless a condition holds."""
        value = self.texts.get(keyword, self.numbers.get(keyword)) or ()
        got = f"no {keyword}" if not value else f"{keyword} {format_value(value)}"
        require_case(condition, self.case_id, "file", got=f"{self.path.name} with {got}", expected=expected, fix=fix)

    def read_integer(self, keyword: str, least: int, most: int, *, default: int | None = None) -> int:
        """Return a tag's integer in a range; no default: required."""
        values = self.numbers[keyword]
        if not values and default is not None:
            return default
        is_valid = len(values) == 1 and values[0].is_integer() and least <= values[0] <= most
        self.require(is_valid, keyword, expected=f"an integer from {least} to {most}")
        return int(values[0])


def read_header(path: Path, *, case_id: str) -> DicomHeader | None:
    """Read the header of a DICOM file.

    It is None for a file without an image, as a report. Only the first 8 MiB are read, and only some tags are kept.

    Raises:
        CaseError: the file is no DICOM file, or damaged, or its header is too large.
    """
    require_case(
        path.is_file(), case_id, "file", got=f"{path.name}, damaged", expected="an existing regular file", fix=RESTORE
    )
    try:
        with path.open("rb") as file:
            start = file.read(MAX_HEADER_BYTES)
    except OSError as error:
        raise make_read_error(case_id, path, error) from None
    _check_start(start, path, case_id)
    try:
        with quiet_pydicom():
            return _parse(start, path, case_id)
    except CaseError:
        raise
    except Exception as error:  # noqa: BLE001 pydicom raises errors of any type for a damaged header
        raise _make_damage_error(case_id, path, f"an unreadable header ({type(error).__name__})") from None


def has_magic(path: Path) -> bool:
    """Return whether a regular file begins as DICOM files do."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def format_value(value: str | tuple[float, ...]) -> str:
    r"""Format a tag's value for a message.

    Example:
        >>> format_value((1.0, 0.5)), format_value("MONOCHROME2")
        ('1\\0.5', "'MONOCHROME2'")
    """
    return repr(value[:60]) if isinstance(value, str) else "\\".join(f"{number:.10g}" for number in value[:9])


def _check_start(start: bytes, path: Path, case_id: str) -> None:
    if start[128:132] != b"DICM":
        raise _make_damage_error(case_id, path, f"{'no DICOM header' if start else 'no bytes'}")
    is_deflated = _DEFLATED in start  # pydicom would inflate it without a limit
    require_case(
        not is_deflated,
        case_id,
        "file",
        got=f"{path.name} with a deflated header",
        expected="another transfer syntax",
        fix="convert the series with dcmconv or gdcmconv",
    )
    items = sum(start.count(tag) for tag in _ITEM_TAGS)
    if items > _MAX_ITEMS:
        raise _make_damage_error(case_id, path, f"{items} items in sequences")


def _parse(start: bytes, path: Path, case_id: str) -> DicomHeader | None:
    import pydicom

    buffer = BytesIO(start)
    tags: Any = [*_NUMBERS, *_TEXTS, *TIMES, *_IDENTITY, *_GROUPS]
    dataset = pydicom.dcmread(buffer, stop_before_pixels=True, specific_tags=tags)
    numbers = _read_numbers(dataset, _NUMBERS, path, case_id)
    texts = {keyword: _read_text(dataset, keyword) for keyword in _TEXTS}
    texts["SeriesDescription"] = _describe(dataset)
    has_pixels = buffer.tell() < len(start)
    if not numbers["Rows"] and not has_pixels:
        kind = pydicom.uid.UID(texts["SOPClassUID"] or str(dataset.file_meta.get("MediaStorageSOPClassUID", ""))).name
        if "Storage" in kind and "Image" not in kind:
            return None
    if not has_pixels:
        reason = f"no pixels in its first {len(start)} bytes"
        raise _make_damage_error(case_id, path, reason)
    return DicomHeader(
        path=path,
        case_id=case_id,
        numbers=numbers,
        texts=texts,
        times=tuple(_read_text(dataset, keyword) for keyword in TIMES),
        frames=_read_frames(dataset, path, case_id),
        syntax=str(dataset.file_meta.get("TransferSyntaxUID", "")),
        pixels_start=buffer.tell(),
    )


def _read_frames(dataset: Any, path: Path, case_id: str) -> tuple[Numbers, ...]:
    """Read the numbers of each frame from the functional groups.

    A frame's own value comes before the shared one.
    """
    shared, frames = (list(dataset.get(keyword) or ()) for keyword in _GROUPS)
    common = _read_group(shared[0], path, case_id) if shared else {}
    return tuple({**common, **_read_group(frame, path, case_id)} for frame in frames)


def _read_group(group: Any, path: Path, case_id: str) -> Numbers:
    found: dict[str, tuple[float, ...]] = {}
    for sequence, keywords in _GEOMETRY.items():
        for item in list(group.get(sequence) or ())[:1]:
            numbers = _read_numbers(item, keywords, path, case_id)
            found.update({keyword: values for keyword, values in numbers.items() if values})
    return found


def _read_numbers(dataset: Any, keywords: tuple[str, ...], path: Path, case_id: str) -> dict[str, tuple[float, ...]]:
    found = {}
    for keyword in keywords:
        try:
            value = dataset.get(keyword)
            is_single = isinstance(value, str | int | float)
            found[keyword] = () if value in (None, "") else tuple(map(float, (value,) if is_single else value))
        except Exception as error:  # noqa: BLE001 as in read_header
            raise _make_damage_error(case_id, path, f"an unreadable {keyword} ({type(error).__name__})") from None
    return found


def _read_text(dataset: Any, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip(" \0")


def _describe(dataset: Any) -> str:
    """Return the series' description without patient data.

    A description with a word of the patient's name or number is left out.
    """
    text = "".join(each for each in _read_text(dataset, "SeriesDescription") if each.isprintable())[:40]
    identity = " ".join(_read_text(dataset, keyword) for keyword in _IDENTITY).casefold()
    words = identity.replace("^", " ").replace("=", " ").replace(",", " ").split()
    return _HIDDEN if not text or any(word in text.casefold() for word in words if len(word) > 1) else text


def _make_damage_error(case_id: str, path: Path, reason: str) -> CaseError:
    return make_header_error(case_id, path, f"{reason}: damaged", expected="a whole DICOM image")


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep pydicom's warnings off the terminal and out of logs.

    They may quote a patient's data.
    """
    logger = logging.getLogger("pydicom")
    before = logger.propagate
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.propagate = False
        try:
            yield
        finally:
            logger.propagate = before
