"""PNG files: one slice of grey values, label values or colours.

Chunks and checksums are checked here, because Pillow skips the checksums of pixels and fills missing rows with zeros.
Pillow decodes the pixels. The format is described in https://www.w3.org/TR/png-3.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from uumamba.data.formats.stored_volume import (
    LPS_TO_RAS,
    RESTORE,
    StoredVolume,
    make_header_error,
)
from uumamba.data.formats.voxel_stream import make_read_error
from uumamba.data.warn import warn_repaired
from uumamba.runtime.errors import CaseError, require_case

PNG_SUFFIXES = (".png",)
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\0\0\0\0IEND\xaeB`\x82"
_CRITICAL = (b"PLTE", b"IDAT", b"IEND")
_GREY, _PALETTE = 0, 3
_SAMPLES = {_GREY: 1, 2: 3, _PALETTE: 1, 4: 2, 6: 4}  # per pixel, by colour type
_MODES = {
    **{(kind, depth): ("P", f"P;{depth}") for kind in (_GREY, _PALETTE) for depth in (1, 2, 4)},  # "L" would scale
    **{(kind, 8): (mode, mode) for kind, mode in {_GREY: "L", 2: "RGB", _PALETTE: "P", 4: "LA", 6: "RGBA"}.items()},
    (_GREY, 16): ("I;16", "I;16B"),
}
"""Pillow's modes in memory and in the file, by colour type and bits per sample."""
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row, and steps, of each part of an interlaced image (Adam7)."""


def open_png(path: Path, *, case_id: str, channels: int = 1) -> StoredVolume:
    """Read the header of a PNG file, a scan of one slice.

    The first axis runs along the rows, to the patient's left; the second down the columns, to the back, as an axial
    slice is displayed and as in ITK. Samples are read as they are stored: grey of 1 to 16 bits, indices of a palette,
    or three channels of 8 bits. A constant alpha channel is dropped with a warning. The file's resolution, gamma,
    colour profile, transparent colour and EXIF data (with a rotation for display) are ignored.

    Raises:
        CaseError: the header is damaged, a colour has 16 bits per channel, or the image has other channels.
    """
    header = _read_header(path, case_id)
    found = header.channels
    require_case(
        found == channels,
        case_id,
        "channels",
        got=f"{path.name} in colour (3 channels)" if found > 1 else f"{path.name} in grey (1 channel)",
        expected=f"{channels} channel{'s' * (channels > 1)}",
        fix=_fix_channels(found, channels),
    )
    return StoredVolume(
        path=path,
        shape=(header.width, header.height, 1),
        dtype=header.dtype,
        directions=np.diag(LPS_TO_RAS),
        origin_mm=np.zeros(3),
        spacing_mm=np.full(3, np.nan),
        spacing_key="PNG",
        voxels=partial(read_pixels, path, case_id=case_id),
        is_complete=partial(_has_end, path),
        default_spacing_mm=np.ones(3),
        has_palette=header.kind == _PALETTE,
        channels=channels,
    )


def _fix_channels(found: int, channels: int) -> str:
    if channels == 1:
        return "save it in grey, a label map with the label values as grey; or name the channels red, green and blue"
    of_each = "a grey image for each channel, named _0000, _0001 and so on"
    return f"give a colour image, or {of_each}" if found < channels == 3 else f"give {of_each}"


def read_pixels(path: Path, *, case_id: str) -> NDArray[Any]:
    """Read the samples of a PNG file.

    They are ``(X, Y, 1)``, or ``(3, X, Y, 1)`` in colour.

    Raises:
        CaseError: a chunk is damaged or missing, there are several frames, or an alpha channel is not constant.
    """
    from PIL import Image  # here, because only PNG needs it

    header = _read_header(path, case_id)
    mode, raw_mode = _MODES[header.kind, header.depth]
    compressed = _read_compressed(path, case_id)
    _check_length(compressed, header.nbytes, path, case_id)
    try:
        image = Image.frombytes(
            mode, (header.width, header.height), compressed, "zip", raw_mode, int(header.is_interlaced)
        )
    except ValueError as error:  # such as an unknown filter of a row
        raise make_read_error(case_id, path, error) from None
    pixels = np.asarray(image).reshape(header.height, header.width, 1, header.samples).swapaxes(0, 1)
    if header.has_alpha:
        _check_alpha(pixels[..., -1], case_id)
        pixels = pixels[..., :-1]
    return pixels[..., 0] if pixels.shape[-1] == 1 else np.moveaxis(pixels, -1, 0)


def encode_png(label: NDArray[Any]) -> bytes:
    """Encode a label map ``(X, Y, 1)`` as grey PNG.

    Example:
        >>> encode_png(np.zeros((3, 2, 1), dtype=np.uint8))[1:4]
        b'PNG'
    """
    from PIL import Image

    with io.BytesIO() as stream:
        Image.fromarray(np.ascontiguousarray(label[:, :, 0].T)).save(stream, "png")
        return stream.getvalue()


@dataclass(frozen=True)
class _Header:
    """Fields of the chunk ``IHDR``."""

    width: int
    height: int
    depth: int
    kind: int
    compression: int
    filtering: int
    interlacing: int

    @property
    def samples(self) -> int:
        return _SAMPLES[self.kind]

    @property
    def has_alpha(self) -> bool:
        return self.kind in (4, 6)

    @property
    def channels(self) -> int:
        return self.samples - self.has_alpha

    @property
    def is_interlaced(self) -> bool:
        return self.interlacing == 1

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint16 if self.depth == 16 else np.uint8)

    @property
    def nbytes(self) -> int:
        """Number of uncompressed bytes: of each row its filter, then its samples."""
        parts = _PASSES if self.is_interlaced else ((0, 0, 1, 1),)
        sizes = ((-(-(self.width - x) // dx), -(-(self.height - y) // dy)) for x, y, dx, dy in parts)
        bits = self.samples * self.depth
        return sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0 and rows > 0)


def _read_header(path: Path, case_id: str) -> _Header:
    try:
        with path.open("rb") as file:
            start = file.read(33)
    except OSError as error:
        raise make_read_error(case_id, path, error) from None
    is_png = start.startswith(_SIGNATURE + b"\0\0\0\x0dIHDR") and len(start) == 33
    if not is_png or zlib.crc32(start[12:29]) != int.from_bytes(start[29:]):
        raise make_header_error(case_id, path, "no valid header", expected="the signature and IHDR of a PNG file")
    header = _Header(*struct.unpack(">IIBBBBB", start[16:29]))
    require_case(
        header.kind not in (2, 4, 6) or header.depth != 16,
        case_id,
        "file",
        got=f"{path.name} with several channels of 16 bits",
        expected="grey of up to 16 bits, or channels of 8 bits",
        fix="save each channel as a grey image, or as one channel of a NIfTI file",
    )
    is_valid = (header.kind, header.depth) in _MODES and 0 < header.width < 2**31 and 0 < header.height < 2**31
    is_known = header.compression == header.filtering == 0 and header.interlacing in (0, 1)
    if not (is_valid and is_known):
        raise make_header_error(case_id, path, f"the header {start[16:29].hex(' ')}", expected="a valid IHDR")
    return header


def _read_compressed(path: Path, case_id: str) -> bytes:
    """Read the compressed pixels; every chunk is checked."""
    pixels: list[bytes] = []
    try:
        with path.open("rb") as file:
            file.seek(33)
            for kind, data in _iterate_chunks(file, path, case_id):
                require_case(
                    kind != b"acTL",
                    case_id,
                    "shape",
                    got=f"{path.name} with several frames (APNG)",
                    expected="one image",
                    fix="save each frame as a PNG file",
                )
                is_critical = not kind[0] & 0x20
                if is_critical and kind not in _CRITICAL:
                    raise make_header_error(case_id, path, f"the chunk {kind!r}", expected="a standard PNG file")
                if kind == b"IDAT":
                    pixels.append(data)
            has_more = any(any(piece) for piece in iter(lambda: file.read(2**20), b""))
    except OSError as error:
        raise make_read_error(case_id, path, error) from None
    if has_more:
        warn_repaired(case_id, f"{path.name} has other bytes than zeros after its end; they are ignored")
    return b"".join(pixels)


def _iterate_chunks(file: BinaryIO, path: Path, case_id: str) -> Iterator[tuple[bytes, bytes]]:
    size, kind = os.fstat(file.fileno()).st_size, b""
    while kind != b"IEND":
        head = file.read(8)
        length, kind = int.from_bytes(head[:4]), head[4:]
        if len(head) < 8 or length > size - file.tell() - 4:
            raise make_header_error(case_id, path, "a chunk that is cut off", expected="chunks up to IEND")
        data = file.read(length)
        if zlib.crc32(data, zlib.crc32(kind)) != int.from_bytes(file.read(4)):
            raise make_header_error(
                case_id, path, f"a wrong checksum of the chunk {kind!r}", expected="right checksums"
            )
        yield kind, data


def _check_length(compressed: bytes, nbytes: int, path: Path, case_id: str) -> None:
    """Check length and checksum of the pixels."""
    member = zlib.decompressobj()
    try:
        found = len(member.decompress(compressed, nbytes + 1))
        found += 0 if member.eof or found > nbytes else len(member.decompress(member.unconsumed_tail, 1))
    except zlib.error as error:
        raise make_read_error(case_id, path, error) from None
    require_case(
        found == nbytes and member.eof,
        case_id,
        "file",
        got=f"{path.name} with {'more than ' if found > nbytes else ''}{min(found, nbytes)} bytes of pixels",
        expected=f"{nbytes} bytes",
        fix=RESTORE,
    )


def _check_alpha(alpha: NDArray[Any], case_id: str) -> None:
    if alpha.min() != alpha.max():
        raise CaseError(
            case_id,
            "image",
            got=f"an alpha channel from {alpha.min()} to {alpha.max()}",
            expected="no alpha channel, or a constant one",
            fix="save the image without alpha, on the background that is meant",
        )
    warn_repaired(case_id, "its constant alpha channel is dropped")


def _has_end(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-min(len(_END), path.stat().st_size), os.SEEK_END)
        return file.read() == _END
