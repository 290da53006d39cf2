"""DICOM with a fault is refused with the tag or file, and without patient data."""

import logging
import os
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import config, dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from tests.data.formats.dicom_files import (
    COLUMNS,
    ROWS,
    compress,
    make_enhanced,
    make_slices,
    write_slices,
)
from uumamba.data.formats.dicom_headers import MAX_HEADER_BYTES
from uumamba.data.open_scan import open_scan
from uumamba.data.scan import read_image
from uumamba.runtime.errors import CaseError

PIXEL_BYTES = ROWS * COLUMNS * 2
_EXPLICIT = b"1.2.840.10008.1.2.1\0"
Write = Callable[[Path], Any]


def second(value: Any, usual: Any) -> Callable[[int], Any]:
    """Return a tag's value that differs in the second of the slices."""
    return lambda index: value if index == 1 else usual


def slices(**tags: Any) -> Write:
    return lambda folder: write_slices(folder, make_slices(**tags))


def damaged(change: Callable[[bytes], bytes], *, number: int = 1, codec: str = "") -> Write:
    """Write a series, and change the bytes of one file."""

    def write(folder: Path) -> None:
        images = make_slices()
        if codec:
            images = [compress(image, codec, folder.with_suffix(".dcm")) for image in images]
        file = write_slices(folder, images) / f"slice{number}.dcm"
        file.write_bytes(change(file.read_bytes()))

    return write


def without(keyword: str) -> Write:
    def write(folder: Path) -> None:
        images = make_slices()
        for image in images:
            del image[keyword]
        write_slices(folder, images)

    return write


def one_file(change: Callable[[Dataset], Any], *, enhanced: bool = True) -> Write:
    """Write one file with four frames."""

    def write(folder: Path) -> None:
        images = make_slices(SliceThickness=5)
        image = make_enhanced(images) if enhanced else images[0]
        image.NumberOfFrames, image.PixelData = 4, b"".join(each.PixelData for each in images)
        change(image)
        write_slices(folder, [image])

    return write


def two_series(folder: Path) -> None:
    write_slices(folder, make_slices())
    second = make_slices(2, SeriesInstanceUID="1.2.9", SeriesNumber=4, SeriesDescription="Mueller axial")
    write_slices(folder, second, name="other{}.dcm")


def with_file(name: str, content: bytes) -> Write:
    def write(folder: Path) -> None:
        (write_slices(folder, make_slices()) / name).write_bytes(content)

    return write


def with_pipe(folder: Path) -> None:
    os.mkfifo(write_slices(folder, make_slices()) / "pipe.dcm")


def set_tags(**tags: Any) -> Callable[[Dataset], None]:
    def change(image: Dataset) -> None:
        for keyword, value in tags.items():
            setattr(image, keyword, value)

    return change


def enlarge_last_fragment(content: bytes) -> bytes:
    at = content.rindex(b"\xfe\xff\x00\xe0")
    return content[: at + 4] + struct.pack("<L", 10**6) + content[at + 8 :]


def cut_last_fragment(content: bytes) -> bytes:
    """Shorten the last fragment by 20 bytes; all lengths stay right."""
    at = content.rindex(b"\xfe\xff\x00\xe0")
    (length,) = struct.unpack("<L", content[at + 4 : at + 8])
    end = at + 8 + length
    return content[: at + 4] + struct.pack("<L", length - 20) + content[at + 8 : end - 20] + content[end:]


def same_places(index: int) -> list[float]:
    return [0.0, 0.0, 5.0 * (index // 2)]


FAULTS: dict[str, tuple[Write, str, str]] = {
    # Positions.
    "a missing slice": (
        slices(ImagePositionPatient=lambda index: [0, 0, (0, 6, 18, 24)[index]]),
        "spacing_mm",
        r"distances of 6\.00 to 12\.00 mm between slices",
    ),
    "a double slice": (
        slices(ImagePositionPatient=lambda index: [0, 0, (0, 6, 6, 12)[index]]),
        "spacing_mm",
        r"two slices at one position: slice1\.dcm and slice2\.dcm",
    ),
    "a slice given twice": (
        slices(ImagePositionPatient=same_places, InstanceNumber=lambda index: index // 2),
        "spacing_mm",
        "two slices at one position",
    ),
    "one slice moved within its plane": (
        slices(ImagePositionPatient=lambda index: [0, 2.0 * (index == 2), 5.0 * index]),
        "spacing_mm",
        r"distances of 5\.00 to 5\.39 mm",
    ),
    "a step that grows slowly": (
        lambda folder: write_slices(
            folder, make_slices(101, ImagePositionPatient=lambda index: [0, 0, index + 0.03 * max(index - 50, 0)])
        ),
        "spacing_mm",
        r"a slice 0\.75 mm off its place",
    ),
    "a cine of one place": (slices(ImagePositionPatient=[0, 0, 0]), "shape", "a cine of 4 frames"),
    "a cine of two places": (
        slices(ImagePositionPatient=same_places, InstanceNumber=1, TriggerTime=lambda index: 40.0 * (index % 2)),
        "shape",
        "a cine of 2 frames",
    ),
    "an enhanced cine": (
        lambda folder: write_slices(folder, [make_enhanced(make_slices(ImagePositionPatient=same_places))]),
        "shape",
        "a cine of 2 frames",
    ),
    "a cine in one file": (one_file(set_tags(FrameTime=40), enhanced=False), "shape", "a cine of 4 frames"),
    "a cine by its rate": (one_file(set_tags(CineRate=30), enhanced=False), "shape", "a cine of 4 frames"),
    "a dose with its own offsets of frames": (
        one_file(set_tags(GridFrameOffsetVector=[0, 3, 6, 9]), enhanced=False),
        "file",
        r"GridFrameOffsetVector 0\\3\\6\\9",
    ),
    "a table of values": (
        slices(ModalityLUTSequence=Items([Dataset()])),
        "file",
        "ModalityLUTSequence .*expected RescaleSlope and RescaleIntercept",
    ),
    "no position": (without("ImagePositionPatient"), "file", "slice0.dcm with no ImagePositionPatient"),
    "a position of two numbers": (
        slices(ImagePositionPatient=[0, 0]),
        "file",
        r"ImagePositionPatient 0\\0, expected three numbers",
    ),
    # Orientation and spacing.
    "no orientation": (without("ImageOrientationPatient"), "file", "slice0.dcm with no ImageOrientationPatient"),
    "no unit vectors": (
        slices(ImageOrientationPatient=[1, 0, 0, 0, 1.1, 0]),
        "file",
        "ImageOrientationPatient .*expected two orthogonal unit vectors",
    ),
    "no orthogonal vectors": (
        slices(ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0]),
        "file",
        "ImageOrientationPatient .*expected two orthogonal unit vectors",
    ),
    "one slice with another orientation": (
        slices(ImageOrientationPatient=second([0, 1, 0, 0, 0, 1], [1, 0, 0, 0, 1, 0])),
        "file",
        r"slice1\.dcm with ImageOrientationPatient 0\\1\\.*as in 3 of 4 slices",
    ),
    "one slice with another spacing": (
        slices(PixelSpacing=second([0.75, 0.6], [0.75, 0.5])),
        "file",
        r"slice1\.dcm with PixelSpacing 0\.75\\0\.6, expected PixelSpacing 0\.75\\0\.5, as in 3 of 4 slices",
    ),
    "one slice without a spacing": (
        slices(PixelSpacing=second(None, [0.75, 0.5])),
        "file",
        r"slice1\.dcm with no PixelSpacing, expected PixelSpacing 0\.75\\0\.5",
    ),
    # Format of the pixels.
    "one slice of another size": (
        slices(Rows=second(ROWS // 2, ROWS), Columns=second(COLUMNS, COLUMNS)),
        "file",
        rf"slice1\.dcm with {PIXEL_BYTES} bytes of pixels: damaged",
    ),
    "one slice turned": (
        slices(Rows=second(COLUMNS, ROWS), Columns=second(ROWS, COLUMNS)),
        "file",
        rf"slice1\.dcm with Rows {COLUMNS}, expected Rows {ROWS}, as in 3 of 4 slices",
    ),
    "one slice of another sign": (
        slices(PixelRepresentation=second(1, 0)),
        "file",
        r"slice1\.dcm with PixelRepresentation 1",
    ),
    "one inverted slice": (
        slices(PhotometricInterpretation=second("MONOCHROME1", "MONOCHROME2")),
        "file",
        r"slice1\.dcm with PhotometricInterpretation 'MONOCHROME1'",
    ),
    "colours": (slices(SamplesPerPixel=3, PhotometricInterpretation="RGB"), "file", "SamplesPerPixel 3"),
    "a palette": (
        slices(PhotometricInterpretation="PALETTE COLOR"),
        "file",
        "PhotometricInterpretation 'PALETTE COLOR', expected MONOCHROME1 or MONOCHROME2",
    ),
    "bits that are not the lowest": (slices(HighBit=15), "file", "HighBit 15"),
    "a slope of zero": (slices(RescaleSlope=0), "file", "RescaleSlope 0, expected a positive number"),
    "no rows": (without("Rows"), "file", "no Rows"),
    "an unknown transfer syntax": (
        damaged(lambda content: content.replace(_EXPLICIT, b"1.2.840.10008.1.2.9\0", 1)),
        "file",
        r"slice1\.dcm with the transfer syntax '1\.2\.840\.10008\.1\.2\.9'.*Fix: convert the series",
    ),
    # Damaged files.
    "an empty first file": (damaged(lambda _: b"", number=0), "file", r"slice0\.dcm with no bytes: damaged"),
    "an empty middle file": (damaged(lambda _: b"", number=2), "file", r"slice2\.dcm with no bytes: damaged"),
    "a last file of zeros": (
        damaged(lambda content: bytes(len(content)), number=3),
        "file",
        r"slice3\.dcm with no DICOM header: damaged",
    ),
    "a file cut in its header": (
        damaged(lambda content: content[:700]),
        "file",
        r"slice1\.dcm with no pixels.*damaged",
    ),
    "a file cut in its pixels": (
        damaged(lambda content: content[:-100]),
        "file",
        rf"slice1\.dcm with {PIXEL_BYTES - 100} bytes of pixels: damaged, expected {PIXEL_BYTES} bytes",
    ),
    "too many pixels": (
        slices(PixelData=bytes(PIXEL_BYTES + 2)),
        "file",
        rf"with {PIXEL_BYTES + 2} bytes of pixels: damaged, expected {PIXEL_BYTES} bytes",
    ),
    "a file cut in its RLE data": (
        damaged(lambda content: content[:-100], codec="RLE"),
        "file",
        r"slice1\.dcm with a bad fragment 1 of its pixels: damaged",
    ),
    "shortened RLE data": (
        damaged(cut_last_fragment, codec="RLE"),
        "file",
        r"slice1\.dcm with pixels that cannot be decoded \(RuntimeError\): damaged",
    ),
    "a fragment longer than the file": (
        damaged(enlarge_last_fragment, codec="JPEG2000"),
        "file",
        r"slice1\.dcm with a bad fragment 1 of its pixels: damaged",
    ),
    "shortened JPEG 2000 data": (
        damaged(cut_last_fragment, codec="JPEG2000"),
        "file",
        r"slice1\.dcm with a cut frame 1 of JPEG data: damaged",
    ),
    "damaged JPEG data": (
        damaged(lambda content: content.replace(b"\xff\xc3", b"\xff\x00"), codec="JPEG"),
        "file",
        r"slice1\.dcm with pixels that cannot be decoded \(ValueError\): damaged",
    ),
    "uncompressed pixels called RLE": (
        damaged(lambda content: content.replace(_EXPLICIT, b"1.2.840.10008.1.2.5\0", 1)),
        "file",
        rf"slice1\.dcm with {PIXEL_BYTES} bytes of compressed pixels without fragments: damaged",
    ),
    # Files of a folder.
    "two series": (
        two_series,
        "file",
        r"2 DICOM series: number 3, heart, CT, 4 slices, UID 1\.2\.3; "
        r"number 4, without a description, CT, 2 slices, UID 1\.2\.9, expected one series\. Fix: .* --series UID",
    ),
    "a text with the suffix of DICOM": (
        with_file("notes.dcm", b"no image"),
        "file",
        r"notes\.dcm with no DICOM header: damaged",
    ),
    "a text without a suffix": (with_file("notes", b"no image"), "file", "notes with no DICOM header: damaged"),
    "a pipe": (with_pipe, "file", r"pipe\.dcm, damaged, expected an existing regular file"),
    "no image at all": (lambda folder: folder.mkdir(), "file", "with 0 DICOM series"),
    # One file.
    "an enhanced image without one position": (
        one_file(lambda image: image.PerFrameFunctionalGroupsSequence.pop()),
        "file",
        "NumberOfFrames 4, expected a position for each frame, found 3",
    ),
    "an enhanced image with too few frames": (
        one_file(set_tags(NumberOfFrames=40)),
        "file",
        rf"{4 * PIXEL_BYTES} bytes of pixels: damaged, expected {40 * PIXEL_BYTES} bytes",
    ),
    "frames without a position": (
        one_file(lambda image: image.__delitem__("ImagePositionPatient"), enhanced=False),
        "file",
        "no ImagePositionPatient",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # of the writer
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_refused_with_its_tag_or_file(
    tmp_path: Path, fault: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write, key, match = FAULTS[fault]
    write(tmp_path / "series")
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CaseError, match=match) as error:
            read_image(tmp_path / "series", case_id="c7")
    assert (error.value.key, error.value.case_id) == (key, "c7")
    assert error.value.fix
    assert not any(word in str(error.value) for word in ("Mueller", "Anna", "4711"))
    assert capfd.readouterr() == ("", ""), "decoders print nothing"
    assert not caplog.records


# Headers that a stranger wrote.


def element(group: int, number: int, kind: bytes, content: bytes, *, length: int | None = None) -> bytes:
    return struct.pack("<HH2sHL", group, number, kind, 0, len(content) if length is None else length) + content


def item(content: bytes) -> bytes:
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content


def sequence(content: bytes) -> bytes:
    return element(9, 0x1010, b"SQ", content, length=2**32 - 1) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


def nest(depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        content = sequence(item(content))
    return content


HOSTILE: dict[str, tuple[bytes, str]] = {
    "deep sequences": (nest(3000), r"an unreadable header \(RecursionError\): damaged"),
    "a million items": (sequence(item(b"") * 10**6), "1000000 items in sequences: damaged"),
    "a length of two gigabytes": (element(9, 0x1010, b"OB", b"", length=2**31), "no pixels in its first"),
    "a header of ten megabytes": (
        element(9, 0x1010, b"OB", bytes(10**7)),
        f"no pixels in its first {MAX_HEADER_BYTES} bytes",
    ),
    "an unknown type": (element(0x18, 0x50, b"ZZ", b"5 "), "slice0"),
    "a spacing of text": (element(0x28, 0x30, b"UT", b"Mueller\\Anna"), r"an unreadable PixelSpacing \(\w+\): damaged"),
    "a spacing that is a sequence": (
        element(0x28, 0x30, b"SQ", item(b"")),
        r"an unreadable PixelSpacing \(\w+\): damaged",
    ),
    "rows that are text": (element(0x28, 0x10, b"UT", b"no number "), r"an unreadable Rows \(\w+\): damaged"),
    "frames of two numbers": (element(0x28, 8, b"UT", b"1\\2 "), "NumberOfFrames"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_header_is_refused(tmp_path: Path, kind: str) -> None:
    content, match = HOSTILE[kind]
    file = write_slices(tmp_path, make_slices(1, SliceThickness=5)) / "slice0.dcm"
    whole = file.read_bytes()
    at = whole.index(b"\xe0\x7f\x10\x00OW")
    file.write_bytes(whole[:at] + content + whole[at:])
    with pytest.raises(CaseError, match=match) as error:
        read_image(file)
    assert "Mueller" not in str(error.value)


def test_a_size_is_compared_with_the_limit_before_pixels_are_decoded(tmp_path: Path, refused: Any) -> None:
    (image,) = make_slices(1, SliceThickness=5)
    compress(image, "RLE", tmp_path / "scratch.dcm")
    image.Rows = image.Columns = 2**16 - 1
    write_slices(tmp_path, [image])
    with refused("file", got="16.0 GiB"):
        open_scan(tmp_path / "slice0.dcm")


def test_reading_changes_no_state_of_the_process(tmp_path: Path) -> None:
    images = [compress(image, "JPEG", tmp_path / "scratch.dcm") for image in make_slices()]
    folder = write_slices(tmp_path / "series", images)
    logger, before = logging.getLogger("pydicom"), dict(vars(config.settings))
    level, loaded = (logger.level, logger.disabled, list(logger.handlers)), "SimpleITK" in sys.modules
    read_image(folder)
    assert ((logger.level, logger.disabled, list(logger.handlers)), dict(vars(config.settings))) == (level, before)
    assert ("SimpleITK" in sys.modules) == loaded, "decoded in another process"


def test_random_damage_gives_an_error_or_what_pydicom_reads(tmp_path: Path) -> None:
    """Uncompressed pixels have no checksum, so that a changed pixel is read as it is stored."""
    whole = (write_slices(tmp_path, make_slices(1, SliceThickness=5)) / "slice0.dcm").read_bytes()
    file, choose, read = tmp_path / "slice0.dcm", np.random.default_rng(0), 0
    for _ in range(150):
        content = bytearray(whole)
        for at in choose.integers(132, whole.index(b"\xe0\x7f\x10\x00OW") + 20, choose.integers(1, 4)):
            content[at] ^= 1 << int(choose.integers(8))
        file.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scan = read_image(file)
        except CaseError:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = dcmread(file)
            bits = image.BitsAllocated - image.BitsStored
            stored = (image.pixel_array << bits) >> bits
            if image.PhotometricInterpretation == "MONOCHROME1":
                stored = 2**image.BitsStored - 1 - stored
            expected = stored * float(image.get("RescaleSlope", 1)) + float(image.get("RescaleIntercept", 0))
            spacing = [float(each) for each in image.PixelSpacing]
        assert np.array_equal(scan.array[:, :, 0].T, expected.astype(np.float32))
        assert scan.spacing_mm[:2] == (spacing[1], spacing[0])
        np.testing.assert_allclose(scan.affine[:3, 3] * (-1, -1, 1), image.ImagePositionPatient)
        read += 1
    assert read > 20
