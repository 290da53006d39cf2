"""NIfTI files whose bytes depend on their content only."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from uumamba.runtime.files import whole_file


def make_header(array: NDArray[np.generic]) -> nib.Nifti1Header:
    """Create a header of an array's type and shape, without scaling."""
    header = nib.Nifti1Header()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    # nibabel would store NaN, which other readers multiply with.
    header["scl_slope"], header["scl_inter"], header["vox_offset"] = 1, 0, 352
    return header


def write_nifti(path: Path, array: NDArray[np.generic], header: nib.Nifti1Header, *, compression: int) -> None:
    """Write a ``.nii.gz`` file atomically, with the header unchanged.

    nibabel would correct some fields of the header.

    Args:
        path: the file.
        array: three axes, of the header's type.
        header: complete, ``vox_offset`` 352 included.
        compression: gzip level, 1 (fast) to 9 (small).
    """
    no_extension = bytes(4)
    # A name or a time in the gzip header would make the bytes of equal scans differ.
    with (
        whole_file(path) as unfinished,
        unfinished.open("wb") as stored,
        gzip.GzipFile("", "wb", compression, stored, mtime=0) as stream,
    ):
        stream.write(header.structarr.tobytes() + no_extension + array.tobytes(order="F"))
