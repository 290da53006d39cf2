"""Decoder of JPEG images in DICOM files, in its own process.

Damaged JPEG data can end GDCM's process, keep it busy for ever, and make it print lines to the terminal; and ITK
changes the locale of its process.
"""

import struct
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SCRIPT = """
import struct, sys
import SimpleITK

reader = SimpleITK.ImageFileReader()
reader.SetImageIO("GDCMImageIO")
reader.SetFileName("image.dcm")
while sys.stdin.buffer.readline():
    pixels = SimpleITK.GetArrayFromImage(reader.Execute())
    name = pixels.dtype.str.encode().ljust(8)
    sys.stdout.buffer.write(name + struct.pack("<3Q", *pixels.shape[-3:]) + pixels.tobytes())
    sys.stdout.buffer.flush()
"""
_HEAD_BYTES = 8 + 3 * 8
_SECONDS, _SECONDS_PER_BYTE = 20.0, 1e-6  # to start on a busy machine, and to decode


class JpegProcess:
    """Process that decodes one DICOM image after the other; a context manager.

    It starts with the first image.

    Example:
        >>> with JpegProcess() as process:
        ...     process.decode(b"no image", np.dtype(np.uint16), (2, 2))
        Traceback (most recent call last):
        ValueError: the decoder failed
    """

    def __enter__(self) -> "JpegProcess":
        self._stack = ExitStack()
        self._folder: str | None = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def decode(self, image: bytes, dtype: np.dtype[Any], shape: tuple[int, int]) -> NDArray[Any]:
        """Decode the pixels of a DICOM image with one frame.

        Raises:
            ValueError: it cannot be decoded, within a second per megabyte, to this dtype and shape.
        """
        if self._folder is None:
            self._folder = self._start()
        Path(self._folder, "image.dcm").write_bytes(image)
        count = dtype.itemsize * shape[0] * shape[1]
        timer = Timer(_SECONDS + _SECONDS_PER_BYTE * count, self._process.kill)
        timer.start()
        try:
            return self._ask(dtype, shape, count)
        finally:
            timer.cancel()

    def _start(self) -> str:
        """Start the process; return its folder."""
        folder = self._stack.enter_context(TemporaryDirectory())
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _SCRIPT],  # -P: no modules of the current folder
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._stack.callback(self._process.communicate)
        self._stack.callback(self._process.kill)  # first
        return folder

    def _ask(self, dtype: np.dtype[Any], shape: tuple[int, int], count: int) -> NDArray[Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(b"next\n")
            self._process.stdin.flush()
        except OSError:
            raise ValueError("the decoder failed") from None
        head = self._process.stdout.read(_HEAD_BYTES)
        if len(head) < _HEAD_BYTES:
            raise ValueError("the decoder failed")
        name, decoded = head[:8].decode().strip(), struct.unpack("<3Q", head[8:])
        if np.dtype(name) != dtype or decoded != (1, *shape):
            raise ValueError(f"the decoder returned {decoded} {name}")
        content = self._process.stdout.read(count)
        if len(content) < count:
            raise ValueError("the decoder failed")
        return np.frombuffer(content, dtype).reshape(shape)
