"""NIfTI files whose bytes depend on their content alone."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from uumamba.runtime.files import whole_file


def write_nifti(path: Path, array: NDArray[np.generic], header: nib.Nifti1Header, *, compression: int) -> None:
    """Write ``.nii.gz``, whole or absent, with the header's fields as given, which nibabel would correct.

    Args:
        path: the file.
        array: three axes, of the header's type.
        header: complete, ``vox_offset`` 352 included.
        compression: of gzip, 1 (fast) to 9 (small).
    """
    no_extension = bytes(4)
    # No name and no time in the gzip header, or equal phantoms would differ in bytes.
    with (
        whole_file(path) as unfinished,
        unfinished.open("wb") as stored,
        gzip.GzipFile("", "wb", compression, stored, mtime=0) as stream,
    ):
        stream.write(header.structarr.tobytes() + no_extension + array.tobytes(order="F"))
