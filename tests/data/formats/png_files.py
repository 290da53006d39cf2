"""PNG files written chunk by chunk, without any library of pictures."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def chunk(kind: bytes, data: bytes = b"", *, crc: int = 0) -> bytes:
    """Return a chunk; its checksum is changed by ``crc``."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ crc)


def header(width: int, height: int, depth: int = 8, kind: int = 0, interlace: int = 0, *, crc: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlace), crc=crc)


def pack_rows(samples: NDArray[Any], depth: int) -> bytes:
    """Pack rows of samples ``(Y, X, channel)``, each after filter 0."""
    packed = b""
    for row in samples.reshape(len(samples), -1):
        bits = "".join(f"{value:0{depth}b}" for value in row.tolist())
        bits += "0" * (-len(bits) % 8)
        packed += b"\0" + int(bits, 2).to_bytes(len(bits) // 8)
    return packed


def pack_passes(samples: NDArray[Any], depth: int) -> bytes:
    """Pack the seven parts of an interlaced image; each pixel belongs to the first part that holds it."""
    step_of = ("16462646", "77777777", "56565656", "77777777", "36463646", "77777777", "56565656", "77777777")
    rows, columns = np.indices(samples.shape[:2])
    part = np.array([[int(step) for step in line] for line in step_of])[rows % 8, columns % 8]
    packed = b""
    for number in range(1, 8):
        mine = part == number
        if mine.any():
            width = int(mine.sum(axis=1).max())
            packed += pack_rows(samples[mine].reshape(-1, width, samples.shape[2]), depth)
    return packed


def make_png(samples: NDArray[Any], depth: int = 8, kind: int = 0, *, interlace: bool = False, **extra: bytes) -> bytes:
    """Make a PNG of samples ``(Y, X)`` or ``(Y, X, channel)``.

    ``before`` is put before the pixels, ``pixels`` replaces them uncompressed, ``after`` follows them.
    """
    samples = samples.reshape(*samples.shape[:2], -1)
    assert samples.shape[2] == SAMPLES[kind]
    pixels = extra.get("pixels", (pack_passes if interlace else pack_rows)(samples, depth))
    height, width = samples.shape[:2]
    compressed = zlib.compress(pixels)
    return b"".join(
        (
            SIGNATURE,
            header(width, height, depth, kind, int(interlace)),
            chunk(b"PLTE", bytes(range(3)) * 2**depth) if kind == 3 else b"",
            extra.get("before", b""),
            chunk(b"IDAT", compressed[:5]),
            chunk(b"IDAT", compressed[5:]),
            extra.get("after", b""),
            chunk(b"IEND"),
        )
    )


def write_png(path: Path, samples: NDArray[Any], depth: int = 8, kind: int = 0, **options: Any) -> Path:
    path.write_bytes(make_png(samples, depth, kind, **options))
    return path
