"""Voxels of a file, decompressed in pieces, with lengths and checksums."""

import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from uumamba.data.formats.stored_volume import RESTORE, Shape
from uumamba.data.warn import warn_repaired
from uumamba.runtime.errors import CaseError, require_case

Compression = Literal["none", "gzip", "zlib"]
_WINDOW_BITS = {"gzip": zlib.MAX_WBITS | 16, "zlib": zlib.MAX_WBITS}
_PIECE = 2**20  # bytes per read, so that the voxels are in memory only once
_SLACK_BYTES = 2**20  # padding that some writers add after the voxels


@dataclass(frozen=True)
class VoxelStream:
    """Place of the voxels in a file.

    Args:
        path: the file.
        compression: compression of everything from ``start`` on.
        start: first byte of the compressed part; 0 if the header is compressed, too.
        skip: number of uncompressed bytes before the voxels.
    """

    path: Path
    compression: Compression = "none"
    start: int = 0
    skip: int = 0

    def read(self, count: int, dtype: np.dtype[Any], *, case_id: str) -> NDArray[Any]:
        """Read voxels as a flat array.

        Bytes after the voxels are padding; of a compressed file they may be 1 MiB, so that a small file cannot keep the
        reader busy. Others than zeros give a warning: the header may announce too few voxels, or a wrong place.

        Raises:
            CaseError: the data is shorter or longer, or fails its checksum; or the file cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                return self._read(file, count, dtype, case_id)
        except (OSError, EOFError, zlib.error) as error:
            raise make_read_error(case_id, self.path, error) from None

    def read_native(
        self, shape: Shape, dtype: np.dtype[Any], *, case_id: str, frames: int = 1, frame_axis: int = 3
    ) -> NDArray[Any]:
        """Read voxels in this machine's byte order, with the first axis fastest.

        Several frames are on ``frame_axis`` in the file, and on the first axis of the result.
        """
        stored = shape if frames == 1 else (*shape[:frame_axis], frames, *shape[frame_axis:])
        voxels = self.read(math.prod(stored), dtype, case_id=case_id).reshape(stored, order="F")
        native = voxels.astype(dtype.newbyteorder("="), copy=False)
        return native if frames == 1 else np.moveaxis(native, frame_axis, 0)

    def has_length(self, nbytes: int) -> bool:
        """Return whether the file's length allows for so many bytes of voxels.

        A gzip file ends with its uncompressed length modulo 2 ** 32. A length in zlib's format is not known without
        decompression, so it is not compared.
        """
        with self.path.open("rb") as stored:
            length = stored.seek(0, os.SEEK_END)
            if self.compression == "none":
                return length - self.start - self.skip >= nbytes
            if self.compression == "zlib":
                return length > self.start
            stored.seek(max(length - 4, 0))
            return int.from_bytes(stored.read(4), "little") == (self.skip + nbytes) % 2**32

    def _read(self, file: BinaryIO, count: int, dtype: np.dtype[Any], case_id: str) -> NDArray[Any]:
        voxels = np.empty(count, dtype)
        content, position, has_more = voxels.data.cast("B"), -self.skip, False
        file.seek(self.start)
        for piece in self._pieces(file):
            part = piece[max(-position, 0) : max(len(content) - position, 0)]
            content[max(position, 0) :][: len(part)] = part
            position += len(piece)
            has_more |= any(piece[max(len(piece) - max(position - len(content), 0), 0) :])
            if position > len(content) + _SLACK_BYTES:
                break
        require_case(
            0 <= position - len(content) <= (math.inf if self.compression == "none" else _SLACK_BYTES),
            case_id,
            "file",
            got=f"{self.path.name} with {self.start + self.skip + position} bytes",
            expected=f"{self.start + self.skip + len(content)} bytes",
            fix=RESTORE,
        )
        if has_more:
            warn_repaired(case_id, f"{self.path.name} has other bytes than zeros after its voxels; they are ignored")
        return voxels

    def _pieces(self, file: BinaryIO) -> Iterator[bytes]:
        if self.compression == "none":
            return iter(lambda: file.read(_PIECE), b"")
        return _decompress(file, _WINDOW_BITS[self.compression])


def make_read_error(case_id: str, path: Path, error: Exception) -> CaseError:
    """Make a case's error from the error of reading its file."""
    reason = getattr(error, "strerror", None) or error
    return CaseError(case_id, "file", got=f"{path.name} ({reason})", expected="a readable scan", fix=RESTORE)


def _decompress(file: BinaryIO, window_bits: int) -> Iterator[bytes]:
    """Decompress a file in pieces, and check its checksums.

    GzipFile of Python 3.11 is slower, because it reads only 8 KiB at a time.
    """
    stored = file.read(_PIECE)
    while stored:
        member = zlib.decompressobj(window_bits)
        while not member.eof:
            if not stored:
                raise EOFError("the compressed data is cut off")
            yield member.decompress(stored, _PIECE)
            stored = member.unconsumed_tail or member.unused_data or file.read(_PIECE)
        stored = stored.lstrip(b"\0")  # padding between members
