"""Scans and label maps on their native grids.

They are read with every check, and written with the scan's own header.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.case import Case
from uumamba.data.chunks import converted, values_of
from uumamba.data.grid import MAX_VOLUME_BYTES, Scan, check_same_grid
from uumamba.data.itk import ITK_SUFFIXES, read_dicom_series, read_itk
from uumamba.data.nifti import encode_label, is_nifti_name, new_header, read_nifti
from uumamba.data.warn import AcdcSpacingWarning, ScanWarning, warn_repaired
from uumamba.runtime.errors import CaseError, require, require_case
from uumamba.runtime.files import whole_file
from uumamba.types import LabelMap

__all__ = [
    "MAX_VOLUME_BYTES",
    "AcdcSpacingWarning",
    "Scan",
    "ScanWarning",
    "check_same_grid",
    "read_case",
    "read_image",
    "read_label",
    "write_label",
]

_INTEGER_TOLERANCE = 1e-3
_MOST_BAD_VOXELS = 0.01


def read_image(
    path: Path | str,
    *,
    case_id: str | None = None,
    max_bytes: int = MAX_VOLUME_BYTES,
    keep_integers: bool = False,
) -> Scan:
    """Read one 3-D scan.

    It is NIfTI, MetaImage, NRRD, or a folder with one DICOM series. Where a NIfTI header's affine and pixdim disagree,
    the columns of the affine have unit length and qform_code is 0 (all of ACDC), the spacing is pixdim's, with one
    :class:`AcdcSpacingWarning` a process; any other disagreement is refused. A few NaN or infinite voxels around the
    body become the smallest value; in the body, or above 1 % of all, they are refused.

    Args:
        path: the file or folder.
        case_id: named in errors and warnings; the file's name when None.
        max_bytes: the largest uncompressed volume to read.
        keep_integers: leave integers in the type that they are stored in, half as large as float32 for CT.

    Raises:
        CaseError: the scan cannot be read with certainty; the message says why and what to do.
    """
    scan = _read(Path(path), case_id or Path(path).name, max_bytes)
    if keep_integers and scan.array.dtype.kind in "iu":
        return scan
    return replace(scan, array=_as_float32(scan.array, case_id or scan.path.name))


def read_label(
    path: Path | str, *, structures: Mapping[str, int], case_id: str | None = None, max_bytes: int = MAX_VOLUME_BYTES
) -> Scan:
    """Read a label map as uint8; no foreground at all is accepted.

    Args:
        path: as for :func:`read_image`.
        structures: the valid values besides 0, at most 255.
        case_id: named in errors.
        max_bytes: the largest uncompressed volume to read.

    Raises:
        CaseError: as for an image; or a value is not within 0.001 of an integer, or is no structure's.
    """
    scan = _read(Path(path), case_id or Path(path).name, max_bytes)
    return replace(scan, array=_as_label(scan.array, structures, case_id or scan.path.name))


def read_case(case: Case, *, structures: Mapping[str, int]) -> tuple[Scan, Scan]:
    """A case's image, its integers kept, and its label on the same grid.

    Raises:
        CaseError: it has no label, either cannot be read, or their grids differ.
    """
    if case.label is None:
        raise CaseError(
            case.case_id,
            "label",
            got=None,
            expected="a path",
            fix="add its label, or leave it out of the training cases",
        )
    image = read_image(case.image, case_id=case.case_id, keep_integers=True)
    label = read_label(case.label, structures=structures, case_id=case.case_id)
    check_same_grid(image, label, case_id=case.case_id)
    return image, label


def write_label(path: Path | str, label: LabelMap, like: Scan) -> None:
    """Write a label map as ``.nii.gz``, whole or absent.

    It gets its scan's shape, matrices, codes, pixdim and units. A scan that was not NIfTI gives a new header whose
    qform and sform both hold its affine.

    Raises:
        ValueError: the label is not uint8, not of the scan's shape, or the path does not end in ``.nii.gz``.
    """
    path = Path(path)
    require(path.name.endswith(".nii.gz"), "path", got=str(path), expected="a name that ends in .nii.gz")
    require(
        label.dtype == np.uint8 and label.shape == like.array.shape,
        "label",
        got=f"{label.dtype} of shape {label.shape}",
        expected=f"uint8 of shape {like.array.shape}",
    )
    header = like.header if like.header is not None else new_header(label.shape, like.affine)
    with whole_file(path) as unfinished:
        unfinished.write_bytes(encode_label(label, header))


def _read(path: Path, case_id: str, max_bytes: int) -> Scan:
    if path.is_dir():
        return read_dicom_series(path, case_id=case_id, max_bytes=max_bytes)
    require_case(
        path.is_file(),
        case_id,
        "file",
        got=str(path),
        expected="an existing regular file",
        fix="restore the file or correct its path",
    )
    if is_nifti_name(path):
        return read_nifti(path, case_id=case_id, max_bytes=max_bytes)
    require_case(
        path.name.lower().endswith(ITK_SUFFIXES),
        case_id,
        "file",
        got=path.name,
        expected=f"a file that ends in {', '.join(('.nii', '.nii.gz', *ITK_SUFFIXES))}",
        fix="convert it, or give a DICOM folder",
    )
    return read_itk(path, case_id=case_id, max_bytes=max_bytes)


def _as_float32(voxels: NDArray[Any], case_id: str) -> NDArray[np.float32]:
    largest = float(np.finfo(np.float32).max)
    if voxels.dtype.kind == "f":
        voxels = _without_nonfinite(voxels, case_id)
        if voxels.dtype.itemsize > 4 and np.abs(voxels).max() > largest:
            warn_repaired(case_id, f"its values reach {np.abs(voxels).max():.0e}; clipped to float32's range")
            voxels = np.clip(voxels, -largest, largest)
    return voxels.astype(np.float32)


def _without_nonfinite(voxels: NDArray[Any], case_id: str) -> NDArray[Any]:
    finite = np.isfinite(voxels)
    if finite.all():
        return voxels
    share = 1 - finite.mean()
    require_case(
        share <= _MOST_BAD_VOXELS and not _touches_body(voxels, finite),
        case_id,
        "image",
        got=f"{share:.2%} NaN or infinite voxels",
        expected=f"at most {_MOST_BAD_VOXELS:.0%}, and none in the body",
        fix="repair or leave out the scan",
    )
    lowest = voxels[finite].min()
    warn_repaired(case_id, f"{(~finite).sum()} NaN or infinite voxels outside the body are set to {lowest:g}")
    return np.where(finite, voxels, lowest)


def _touches_body(voxels: NDArray[Any], finite: NDArray[np.bool_]) -> bool:
    """Check for bad voxels beside bright ones.

    In a box of 5 around one, half of the finite voxels are brighter than the mean, or none is finite.
    """
    from scipy import ndimage  # a tenth of a second, which a scan without such voxels is spared

    body = finite & (np.where(finite, voxels, 0) > voxels[finite].mean(dtype=np.float64))
    bright, known = (ndimage.uniform_filter(mask.astype(np.float32), size=5) for mask in (body, finite))
    return bool((bright >= 0.5 * known)[~finite].any())


def _as_label(voxels: NDArray[Any], structures: Mapping[str, int], case_id: str) -> LabelMap:
    require(
        all(0 < value < 256 for value in structures.values()),
        "structures",
        got=dict(structures),
        expected="values from 1 to 255",
    )
    values = values_of(voxels)
    whole = np.round(values)
    with np.errstate(invalid="ignore"):  # infinity less infinity
        distances = np.where(np.isfinite(values), np.abs(values - whole), np.inf)
    require_case(
        distances.max() <= _INTEGER_TOLERANCE,
        case_id,
        "label",
        got=values[int(np.argmax(distances))].item(),
        expected="integers",
        fix="correct the label",
    )
    unknown = sorted({int(value) for value in whole} - {0, *structures.values()})
    require_case(
        not unknown,
        case_id,
        "label",
        got=", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else ""),
        expected=f"0 background, {', '.join(f'{value} {name}' for name, value in structures.items())}",
        fix="correct the label or the list of structures; image and label may be swapped",
    )
    return voxels if voxels.dtype == np.uint8 else converted(voxels, np.uint8, np.round)
