"""Probabilities of a segmentation as one 4-D NIfTI file.

The file is ``(X, Y, Z, K)`` on the scan's grid with its matrices. Voxels are uint16 with a slope of 1 / 65535, an error
of at most 8e-6; NIfTI has no float16. A comment in the header's extension, which nibabel reads as
``image.header.extensions[0]``, is JSON with the name of each volume: ``{"names": ["background", "RV", ...]}``.
"""

import json
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from uumamba.data.formats.nifti import GZIP_BITS, new_header
from uumamba.data.geometry import Geometry
from uumamba.data.grid import Image, Scan
from uumamba.data.restored_planes import OpenStore, Place, StoreMap
from uumamba.runtime.files import make_folder, report_write_errors, whole_file

STEPS = 65535
_COMMENT = 6  # NIfTI's code of an extension with plain text
_EXTENSION_UNIT = 16
_COMPRESSION_LEVEL = 1  # a tenth larger than at level 6, in a third of the time


@contextmanager
def write_probabilities(
    path: Path, like: Scan, names: Sequence[str], *, has_background: bool = True
) -> Iterator[OpenStore]:
    """Write probabilities that arrive in parts, atomically.

    The parts are kept in a file without a name in the same folder, two bytes a voxel and class, and written class by
    class at the end of the block. Memory holds one class.

    Args:
        path: the ``.nii.gz`` file.
        like: scan with the grid and header.
        names: name of each class or region.
        has_background: outside the crop, the first class has the probability 1.

    Yields:
        The store, for :func:`uumamba.data.restored_planes.restore_planes`.

    Raises:
        OutputError: the disk is full, or the folder may not be written to.
    """
    make_folder(path.parent)
    with report_write_errors(path), tempfile.TemporaryFile(dir=path.parent) as scratch:
        parts = _StoredParts(scratch, has_background=has_background)
        yield parts.open
        with whole_file(path) as unfinished, unfinished.open("wb") as file:
            stream = zlib.compressobj(_COMPRESSION_LEVEL, wbits=GZIP_BITS)
            header = _make_header(like, parts.count)
            file.write(stream.compress(_encode_header(header, names)))
            for volume in parts.list_volumes():
                for z in range(volume.shape[2]):
                    plane = volume[..., z].astype(header.get_data_dtype(), copy=False)
                    file.write(stream.compress(plane.tobytes(order="F")))
            file.write(stream.flush())


class _StoredParts:
    """Parts of the probabilities in a file, ``(K, *crop)`` uint16."""

    def __init__(self, file: IO[bytes], *, has_background: bool) -> None:
        self._file, self._has_background = file, has_background
        self._geometry: Geometry | None = None
        self.count = 0

    def open(self, geometry: Geometry, count: int) -> StoreMap:
        self._geometry, self.count = geometry, count
        shape, start = geometry.cropped_shape, geometry.crop_start

        def store(k: int, place: Place, values: Image) -> None:
            z, rows, _ = place
            steps = np.rint(values * np.float32(STEPS)).clip(0, STEPS).astype(np.uint16)
            self._file.seek(self._find_byte(k, z - start[0], rows.start - start[1], shape))
            self._file.write(steps.data)

        return store

    def list_volumes(self) -> Iterator[NDArray[np.uint16]]:
        """Yield the native volume of each class, valid until the next one."""
        assert self._geometry is not None
        geometry = self._geometry
        oriented = np.zeros(geometry.oriented_shape, dtype=np.uint16)
        _, *plane = geometry.cropped_shape
        for k in range(self.count):
            oriented.fill(STEPS if k == 0 and self._has_background else 0)
            for z, target in enumerate(oriented[geometry.crop]):
                self._file.seek(self._find_byte(k, z, 0, geometry.cropped_shape))
                stored = self._file.read(target.size * oriented.itemsize)
                target[:] = np.frombuffer(stored, dtype=np.uint16).reshape(plane)
            yield geometry.unorient(oriented)

    @staticmethod
    def _find_byte(k: int, z: int, y: int, shape: Sequence[int]) -> int:
        return ((k * shape[0] + z) * shape[1] + y) * shape[2] * np.dtype(np.uint16).itemsize


def _make_header(like: Scan, count: int) -> Any:
    header = new_header(like.shape, like.affine) if like.header is None else like.header.copy()
    units, spacing = header["xyzt_units"].copy(), header["pixdim"].copy()
    header.set_data_shape((*like.shape, count))
    header["xyzt_units"], header["pixdim"] = units, spacing
    header["pixdim"][4:] = 1
    header.set_data_dtype(np.uint16)
    header["scl_slope"], header["scl_inter"] = 1 / STEPS, 0
    header["cal_min"], header["cal_max"], header["descrip"] = 0, 1, b""
    header["magic"] = header.single_magic
    return header


def _encode_header(header: Any, names: Sequence[str]) -> bytes:
    text = json.dumps({"names": list(names)}, ensure_ascii=False).encode()
    size = -(-(8 + len(text)) // _EXTENSION_UNIT) * _EXTENSION_UNIT
    header["vox_offset"] = header.single_vox_offset + size
    order: Literal["little", "big"] = "little" if header.endianness == "<" else "big"
    sizes = size.to_bytes(4, order) + _COMMENT.to_bytes(4, order)
    start: bytes = header.binaryblock + b"\1\0\0\0"
    return start + (sizes + text).ljust(size, b"\0")
