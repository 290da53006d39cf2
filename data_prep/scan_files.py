"""Voxel grids from scan headers, and the comparison of image and label."""

import warnings
import zlib
from pathlib import Path

from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from nibabel.wrapstruct import WrapStructError

from uumamba.data.grid import Scan, check_same_grid
from uumamba.data.open_scan import open_scan
from uumamba.data.warn import ScanWarning
from uumamba.runtime.case_boundary import fail_case_on_error

DAMAGED = (
    HeaderDataError, HeaderTypeError, WrapStructError,
    OSError, EOFError, KeyError, OverflowError, ValueError, zlib.error,
)  # fmt: skip
"""Errors that nibabel raises for a damaged file."""


def check_scan_pair(image: Path, label: Path | None, *, case_id: str) -> None:
    """Raise if a scan is damaged or its label has another grid.

    Only headers are read and, of a compressed NIfTI file, the uncompressed length in its last bytes. If these indicate
    damage, the file is read in full, so that the error is that of the reader. Grids are compared by
    :func:`uumamba.data.check_same_grid`; warnings of smaller repairs appear when the scan is prepared.

    Args:
        image: any format of :mod:`uumamba.data.open_scan`.
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


def read_grid(path: Path, *, case_id: str, channels: int = 1) -> Scan:
    """Read shape, affine and spacing from a scan's header.

    The array of the returned scan is a placeholder without memory.

    Args:
        path: any format of :mod:`uumamba.data.open_scan`.
        case_id: named in errors.
        channels: number of channels in the file.

    Raises:
        CaseError: the header cannot be read, or its grid is invalid.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScanWarning)
        return open_scan(path, case_id=case_id, channels=channels).read_grid()
