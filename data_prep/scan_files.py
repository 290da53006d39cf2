"""Voxel grids from scan headers, and the comparison of image and label."""

import os
import warnings
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from uumamba.data.itk import read_affine
from uumamba.data.nifti import is_nifti_name, read_nifti
from uumamba.data.scan import Scan, check_same_grid
from uumamba.data.warn import ScanWarning
from uumamba.runtime.case_boundary import fail_case_on_error
from uumamba.runtime.errors import CaseError, require_case

DAMAGED = (
    HeaderDataError, HeaderTypeError, WrapStructError,
    OSError, EOFError, KeyError, OverflowError, ValueError, zlib.error,
)  # fmt: skip
"""Errors that nibabel raises for a damaged file."""

_Grid = tuple[tuple[int, ...], NDArray[np.float64], tuple[float, ...]]


def check_scan_pair(image: Path, label: Path | None, *, case_id: str) -> None:
    """Raise if a scan is damaged or its label has another grid.

    Only headers are read and, of a compressed NIfTI file, the uncompressed length in its last bytes. If these indicate
    damage, the file is read in full, so that the error is that of the reader. Grids are compared by
    :func:`uumamba.data.check_same_grid`; warnings of smaller repairs appear when the scan is prepared.

    Args:
        image: NIfTI, or any format of :mod:`uumamba.data.itk`.
        label: label map in one of these formats, or None.
        case_id: named in errors.

    Raises:
        CaseError: a file cannot be read, or shapes or positions differ by more than half a voxel.
    """
    with fail_case_on_error(case_id):
        grid = read_grid(image, case_id=case_id)
        if label is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ScanWarning)
                check_same_grid(grid, read_grid(label, case_id=case_id), case_id=case_id)


def read_grid(path: Path, *, case_id: str) -> Scan:
    """Read shape, affine and spacing from a scan's header.

    The array of the returned scan is a placeholder without memory.

    Args:
        path: NIfTI, or any format of :mod:`uumamba.data.itk`.
        case_id: named in errors.

    Raises:
        CaseError: the header cannot be read, or does not describe a 3-D volume.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScanWarning)
        shape, affine, spacing_mm = (
            _read_nifti_grid(path, case_id) if is_nifti_name(path) else _read_itk_grid(path, case_id)
        )
    return Scan(np.broadcast_to(np.uint8(0), shape), affine, spacing_mm, None, path)


def _read_nifti_grid(path: Path, case_id: str) -> _Grid:
    try:
        with ImageOpener(str(path)) as stream:
            header: Any = nib.Nifti1Header(stream.read(nib.Nifti1Header.sizeof_hdr), check=False)
        shape, affine = header.get_data_shape(), header.get_best_affine()
        with np.errstate(all="ignore"):
            determinant = np.linalg.det(affine)
        has_volume = len(shape) == 3 and min(shape) > 0 and np.isfinite(determinant) and determinant != 0
        if has_volume and _is_complete(path, header):
            first, second, third = map(float, header.get_zooms())
            return shape, affine, (first, second, third)
    except DAMAGED:
        pass
    scan = read_nifti(path, case_id=case_id)
    return scan.array.shape, scan.affine, scan.spacing_mm


def _is_complete(path: Path, header: Any) -> bool:
    """Return whether a file has the length that its header requires.

    A gzip file ends with its uncompressed length modulo 2 ** 32.
    """
    voxels = int(np.prod(header.get_data_shape(), dtype=np.int64))
    expected = int(header["vox_offset"]) + voxels * header.get_data_dtype().itemsize
    with path.open("rb") as stored:
        length = stored.seek(-4, os.SEEK_END) + 4
        announced = int.from_bytes(stored.read(4), "little")
    return announced == expected % 2**32 if path.suffix.lower() == ".gz" else length >= expected


def _read_itk_grid(path: Path, case_id: str) -> _Grid:
    import SimpleITK  # slow to import, and not needed for NIfTI

    reader: Any = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise CaseError(
            case_id,
            "header",
            got=f"{path.name} of {path.stat().st_size} bytes",
            expected="a readable scan",
            fix="restore the file from the download",
        ) from None
    size = reader.GetSize()
    require_case(
        len(size) == 3, case_id, "shape", got=size, expected=f"three axes in {path.name}", fix="give a 3-D scan"
    )
    return size, read_affine(reader), reader.GetSpacing()
