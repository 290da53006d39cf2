"""Format, place and length of the pixels in DICOM files."""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from uumamba.data.formats.dicom_headers import DicomHeader
from uumamba.data.formats.stored_volume import RESTORE, make_header_error
from uumamba.runtime.errors import require_case

IMPLICIT, LITTLE, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"
JPEG = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91))
_PIXEL_TAG, ITEM, _END = (0x7FE0, 0x0010), 0xE000FFFE, 0xE0DDFFFE
_END_MARKER = b"\xff\xd9"
_MAX_FRAGMENTS = 2**17
_UNDEFINED = 2**32 - 1

Piece = tuple[int, int]
"""Start and length of a part of a file."""


@dataclass(frozen=True)
class PixelFormat:
    """Format of the pixels of a DICOM file.

    Args:
        frames: number of frames.
        rows: rows of a frame.
        columns: columns of a frame.
        allocated: bits of a stored pixel: 8, 16 or 32.
        stored: bits that hold its value, the lowest ones.
        is_signed: whether values are signed.
        is_inverted: whether low values are bright (MONOCHROME1).
    """

    frames: int
    rows: int
    columns: int
    allocated: int
    stored: int
    is_signed: bool
    is_inverted: bool

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the stored values."""
        return np.dtype(f"{'i' if self.is_signed else 'u'}{self.allocated // 8}")

    @property
    def frame_bytes(self) -> int:
        """Length of an uncompressed frame."""
        return self.rows * self.columns * self.allocated // 8

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest value."""
        return (-(2 ** (self.stored - 1)), 2 ** (self.stored - 1) - 1) if self.is_signed else (0, 2**self.stored - 1)


@dataclass(frozen=True)
class StoredFrame:
    """Pixels of one frame in a file.

    Args:
        path: the file.
        syntax: UID of the transfer syntax.
        format: format of the pixels.
        pieces: parts of the file that hold the frame.
    """

    path: Path
    syntax: str
    format: PixelFormat
    pieces: tuple[Piece, ...]


def read_format(header: DicomHeader) -> PixelFormat:
    """Read and check the format of a file's pixels.

    Raises:
        CaseError: a tag is absent or invalid, or the pixels have colours.
    """
    header.read_integer("SamplesPerPixel", 1, 1, default=1)
    photometric = header.texts["PhotometricInterpretation"]
    header.require(
        photometric in ("MONOCHROME1", "MONOCHROME2"),
        "PhotometricInterpretation",
        expected="MONOCHROME1 or MONOCHROME2",
        fix="give a series of scalar images",
    )
    allocated = header.read_integer("BitsAllocated", 8, 32)
    header.require(allocated in (8, 16, 32), "BitsAllocated", expected="8, 16 or 32")
    stored = header.read_integer("BitsStored", 1, allocated)
    header.read_integer("HighBit", stored - 1, stored - 1, default=stored - 1)
    return PixelFormat(
        frames=header.read_integer("NumberOfFrames", 1, 2**31 - 1, default=1),
        rows=header.read_integer("Rows", 1, 2**16 - 1),
        columns=header.read_integer("Columns", 1, 2**16 - 1),
        allocated=allocated,
        stored=stored,
        is_signed=header.read_integer("PixelRepresentation", 0, 1) == 1,
        is_inverted=photometric == "MONOCHROME1",
    )


def locate_frames(header: DicomHeader) -> list[StoredFrame]:
    """Find the frames of a file, and check their lengths.

    Uncompressed pixels must have the length that the header announces, with one byte of padding at most. Compressed
    ones must have at least one fragment per frame, each inside the file; JPEG's must end with JPEG's end marker. Damage
    within a fragment is found by the decoder, or not at all: JPEG 2000 and the other JPEGs have no checksum, so that
    changed bytes may give other voxels without an error.

    Raises:
        CaseError: the pixels are cut, too long, or compressed in an unknown way.
    """
    layout = read_format(header)
    is_compressed = header.syntax in (RLE, *JPEG)
    require_case(
        is_compressed or header.syntax in (IMPLICIT, LITTLE, BIG),
        header.case_id,
        "file",
        got=f"{header.path.name} with the transfer syntax {header.syntax[:64]!r}",
        expected="an uncompressed, RLE, JPEG, JPEG-LS or JPEG 2000 image",
        fix="convert the series with dcmconv or gdcmconv",
    )
    with header.path.open("rb") as file:
        file.seek(header.pixels_start)
        length = _read_length(file, header)
        if is_compressed:
            _require_whole(header, length == _UNDEFINED, f"{length} bytes of compressed pixels without fragments")
            pieces = _find_frames(file, header, layout)
        else:
            pieces = _cut_frames(file, header, layout, length)
    return [StoredFrame(header.path, header.syntax, layout, each) for each in pieces]


def read_piece(file: BinaryIO, piece: Piece) -> bytes:
    """Read a part of a file.

    Raises:
        OSError: the file is shorter.
    """
    start, length = piece
    file.seek(start)
    content = file.read(length)
    if len(content) < length:
        raise OSError("the file is shorter than before")
    return content


def _read_length(file: BinaryIO, header: DicomHeader) -> int:
    """Read the head of the element with the pixels."""
    order, is_implicit = ">" if header.syntax == BIG else "<", header.syntax == IMPLICIT
    head = file.read(8 if is_implicit else 12).ljust(12, b"\0")
    _require_whole(header, struct.unpack(f"{order}HH", head[:4]) == _PIXEL_TAG, "no PixelData")
    _require_whole(header, is_implicit or head[4:6] in (b"OB", b"OW"), "PixelData of another type than bytes")
    return int(struct.unpack(f"{order}L", head[4:8] if is_implicit else head[8:12])[0])


def _cut_frames(file: BinaryIO, header: DicomHeader, layout: PixelFormat, length: int) -> list[tuple[Piece, ...]]:
    start, expected = file.tell(), layout.frames * layout.frame_bytes
    present = min(length, os.fstat(file.fileno()).st_size - start)
    require_case(
        present == length and length - expected in (0, 1),
        header.case_id,
        "file",
        got=f"{header.path.name} with {present} bytes of pixels: damaged",
        expected=f"{expected} bytes: {layout.columns} x {layout.rows} x {layout.frames} pixels of {layout.dtype}",
        fix=RESTORE,
    )
    return [((start + number * layout.frame_bytes, layout.frame_bytes),) for number in range(layout.frames)]


def _find_frames(file: BinaryIO, header: DicomHeader, layout: PixelFormat) -> list[tuple[Piece, ...]]:
    """Find the fragments of each frame.

    A single frame has all fragments. Of several frames, each has one, unless the table of offsets says otherwise.
    """
    table, *fragments = _walk_fragments(file, header)
    offsets = struct.unpack(f"<{table[1] // 4}L", read_piece(file, table)[: table[1] // 4 * 4])
    if layout.frames == 1:
        grouped = [tuple(fragments)]
    elif len(offsets) == layout.frames:
        starts = [start - 8 - table[0] - table[1] for start, _ in fragments]
        firsts = [starts.index(offset) for offset in offsets if offset in starts]
        grouped = [tuple(fragments[first:end]) for first, end in zip(firsts, (*firsts[1:], None), strict=True)]
    else:
        grouped = [(fragment,) for fragment in fragments]
    is_valid = len(grouped) == layout.frames and all(grouped) and sum(map(len, grouped)) == len(fragments)
    _require_whole(header, is_valid, f"{len(fragments)} fragments of pixels for {layout.frames} frames")
    if header.syntax in JPEG:
        for number, pieces in enumerate(grouped, start=1):
            start, length = pieces[-1]
            end = read_piece(file, (start + max(length - 64, 0), min(length, 64))).rstrip(b"\0")
            _require_whole(header, end.endswith(_END_MARKER), f"a cut frame {number} of JPEG data")
    return grouped


def _walk_fragments(file: BinaryIO, header: DicomHeader) -> list[Piece]:
    size, pieces = os.fstat(file.fileno()).st_size, list[Piece]()
    while True:
        head = file.read(8)
        _require_whole(header, len(head) == 8 and len(pieces) <= _MAX_FRAGMENTS, "no end of its fragments")
        tag, length = struct.unpack("<LL", head)
        if tag == _END and pieces:
            return pieces
        is_inside = tag == ITEM and file.tell() + length <= size
        _require_whole(header, is_inside, f"a bad fragment {len(pieces)} of its pixels")
        pieces.append((file.tell(), length))
        file.seek(length, os.SEEK_CUR)


def _require_whole(header: DicomHeader, condition: object, reason: str) -> None:
    if not condition:
        raise make_header_error(header.case_id, header.path, f"{reason}: damaged", expected="a whole DICOM image")
