"""Writing a NIfTI file whose bytes depend on nothing but its content."""

import gzip
import io
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from uumamba.runtime.files import whole_file


def write_nifti(path: Path, array: NDArray[np.generic], header: nib.Nifti1Header, *, compression: int) -> None:
    """Write ``.nii.gz``, whole or absent; the header's fields go to disk as they are, which nibabel would correct.

    Args:
        path: the file.
        array: three axes, of the header's type.
        header: complete, ``vox_offset`` 352 included.
        compression: of gzip, 1 (fast) to 9 (small).
    """
    no_extension = bytes(4)
    content = header.structarr.tobytes() + no_extension + array.tobytes(order="F")
    compressed = io.BytesIO()
    # No name and no time in the gzip header, or equal phantoms would differ in bytes.
    with gzip.GzipFile(filename="", mode="wb", fileobj=compressed, compresslevel=compression, mtime=0) as stream:
        stream.write(content)
    with whole_file(path) as unfinished:
        unfinished.write_bytes(compressed.getvalue())
