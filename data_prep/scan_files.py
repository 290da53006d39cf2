"""What a raw folder holds, and whether an image and its label fit, judged by their headers."""

import gzip
import os
import warnings
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from uumamba.data.nifti import is_nifti_name, read_nifti
from uumamba.data.scan import Scan, check_same_grid
from uumamba.data.warn import ScanWarning
from uumamba.runtime.errors import CaseError

_RESTORE = "restore the file from the download"
_DAMAGED = (
    HeaderDataError, HeaderTypeError, WrapStructError,
    OSError, EOFError, KeyError, OverflowError, ValueError, zlib.error,
)  # fmt: skip
_GZIP_MAGIC = b"\x1f\x8b"
_Grid = tuple[tuple[int, ...], NDArray[np.float64], tuple[float, ...]]


def files_below(folder: Path) -> list[Path]:
    """Every regular file of a folder and its subfolders, sorted; hidden names are left out.

    Links to folders are followed, since shards of a large data set may lie on other disks; a folder that is reached
    twice is listed once.

    Example:
        >>> import tempfile
        >>> raw = Path(tempfile.mkdtemp())
        >>> (raw / "1-200").mkdir()
        >>> for name in ("1-200/1.img.nii.gz", "1-200/._1.img.nii.gz"):
        ...     (raw / name).touch()
        >>> [path.name for path in files_below(raw)]
        ['1.img.nii.gz']
    """
    return sorted(_walk(folder))


def check_pair(image: Path, label: Path | None, *, case_id: str) -> None:
    """Refuse an image that is damaged, or does not lie on its label's grid, without reading the voxels.

    Only headers are read, and of a compressed NIfTI file the length that its last bytes announce; a file that looks
    damaged by them is then read in full, so that the verdict is the reader's own. The rule for grids is that of
    :func:`uumamba.data.check_same_grid`; smaller repairs are left to be warned of when the scan is prepared.

    Args:
        image: NIfTI, or any format of :mod:`uumamba.data.itk`.
        label: the same, or None where there is none.
        case_id: named in errors.

    Raises:
        CaseError: a file cannot be read, or shapes or positions differ by more than half a voxel.
    """
    own = read_grid(image, case_id=case_id)
    if label is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScanWarning)
            check_same_grid(own, read_grid(label, case_id=case_id), case_id=case_id)


def read_grid(path: Path, *, case_id: str) -> Scan:
    """Where a scan lies, by its header; its voxels are a stand-in that takes no memory.

    Args:
        path: NIfTI, or any format of :mod:`uumamba.data.itk`.
        case_id: named in errors.

    Raises:
        CaseError: the header cannot be read, or is not that of a whole volume.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScanWarning)
        shape, affine, spacing_mm = _nifti_grid(path, case_id) if is_nifti_name(path) else _itk_grid(path, case_id)
    return Scan(np.broadcast_to(np.uint8(0), shape), affine, spacing_mm, None, path)


def _walk(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(root) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(root))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (path for name in names if not name.startswith(".") and (path := Path(root, name)).is_file())


def _nifti_grid(path: Path, case_id: str) -> _Grid:
    try:
        with path.open("rb") as stored:
            header = _first_header(stored)
            shape, affine = header.get_data_shape(), header.get_best_affine()
            is_volume = len(shape) == 3 and min(shape) > 0
            if is_volume and _maps_volume(affine) and _is_complete(stored, header):
                first, second, third = map(float, header.get_zooms())
                return shape, affine, (first, second, third)
    except _DAMAGED:
        pass
    read = read_nifti(path, case_id=case_id)
    return read.array.shape, read.affine, read.spacing_mm


def _first_header(stored: IO[bytes]) -> Any:
    """The header as it stands: nibabel repairs nothing and logs nothing."""
    stream = gzip.GzipFile(fileobj=stored) if _is_compressed(stored) else stored
    return nib.Nifti1Header.from_fileobj(BytesIO(stream.read(nib.Nifti1Header.sizeof_hdr)), check=False)


def _maps_volume(affine: NDArray[np.float64]) -> bool:
    with np.errstate(all="ignore"):
        determinant = np.linalg.det(affine)
    return bool(np.isfinite(determinant) and determinant != 0)


def _is_complete(stored: IO[bytes], header: Any) -> bool:
    """Whether the file is as long as its header says; of a gzip file, the length at its end, modulo 2 ** 32."""
    voxels = int(np.prod(header.get_data_shape(), dtype=np.int64))
    expected = int(header["vox_offset"]) + voxels * header.get_data_dtype().itemsize
    length = stored.seek(-4, os.SEEK_END) + 4
    announced = int.from_bytes(stored.read(4), "little")
    return announced == expected % 2**32 if _is_compressed(stored) else length >= expected


def _is_compressed(stored: IO[bytes]) -> bool:
    stored.seek(0)
    start = stored.read(len(_GZIP_MAGIC))
    stored.seek(0)
    return start == _GZIP_MAGIC


def _itk_grid(path: Path, case_id: str) -> _Grid:
    reader = _simple_itk().ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        size = path.stat().st_size
        raise CaseError(case_id, f"the header of {path.name} ({size} bytes) cannot be read", _RESTORE) from None
    if reader.GetDimension() != 3:
        found = f"{path.name} is {reader.GetDimension()}-D, with the shape {reader.GetSize()}"
        raise CaseError(case_id, found, "give a 3-D scan")
    lps = np.eye(4)
    lps[:3, :3] = np.array(reader.GetDirection()).reshape(3, 3) * np.array(reader.GetSpacing())
    lps[:3, 3] = reader.GetOrigin()
    return reader.GetSize(), np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps, reader.GetSpacing()


def _simple_itk() -> Any:
    """SimpleITK, imported by the first scan that needs it: NIfTI does without."""
    import SimpleITK

    return SimpleITK
