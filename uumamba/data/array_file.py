"""Array files that are written slab by slab."""

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from uumamba.runtime.errors import require
from uumamba.runtime.files import whole_file


def write_array(path: Path, slabs: Iterable[NDArray[Any]], shape: tuple[int, ...]) -> str:
    """Write an array slab by slab, and return the file's SHA-256.

    The format is that of ``np.save``; the file is whole or absent.

    Args:
        path: the file.
        slabs: parts of the array in the order of its voxels.
        shape: shape of the whole array.

    Raises:
        UsageError: the slabs have more or fewer voxels than the shape.
    """
    written = 0
    with whole_file(path) as unfinished, unfinished.open("wb") as stream:
        file: Any = _HashedStream(stream)
        for slab in slabs:
            if written == 0:
                header = {"descr": np.lib.format.dtype_to_descr(slab.dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(slab).data)
            written += slab.size
        require(
            written == math.prod(shape),
            path.name,
            got=f"{written} voxels",
            expected=f"{math.prod(shape)} voxels for the shape {shape}",
        )
    return str(file.digest.hexdigest())


class _HashedStream:
    """Stream that hashes what is written."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.digest = stream, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._stream.write(data)
