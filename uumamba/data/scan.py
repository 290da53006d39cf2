"""Scans and label maps on their native grids: read with every check, written with the scan's own header."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.case import Case
from uumamba.data.chunks import converted, values_of
from uumamba.data.grid import displacement_voxels
from uumamba.data.itk import ITK_SUFFIXES, read_dicom_series, read_itk
from uumamba.data.nifti import MAX_VOLUME_BYTES, encode_label, is_nifti_name, new_header, read_nifti
from uumamba.data.warn import AcdcSpacingWarning, ScanWarning, warn_repaired
from uumamba.runtime.errors import CaseError
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
_MOST_VALUES = 256  # of a label map, background among them


@dataclass(frozen=True)
class Scan:
    """A volume on its native grid.

    Args:
        array: three axes in stored order; of an image float32 (or the integers that it is stored as, where they were
            asked for), of a label uint8.
        affine: 4 x 4 float64, voxel index to RAS+ millimetres; the physical one, where a header's matrix lies.
        spacing_mm: of the array's axes.
        header: nibabel's, unchanged, of a NIfTI file; else None.
        path: where it was read from.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    spacing_mm: tuple[float, float, float]
    header: Any
    path: Path


def read_image(
    path: Path | str,
    *,
    case_id: str | None = None,
    max_bytes: int = MAX_VOLUME_BYTES,
    keep_integers: bool = False,
) -> Scan:
    """Read one 3-D scan: NIfTI, MetaImage, NRRD, or a folder with one DICOM series.

    Where a NIfTI header's affine and pixdim disagree, the columns of the affine have unit length and qform_code is 0
    (all of ACDC), the spacing is pixdim's, with one :class:`AcdcSpacingWarning` a process; any other disagreement is
    refused. A few NaN or infinite voxels around the body become the smallest value; in the body, or above 1 % of all,
    they are refused.

    Args:
        path: the file or folder.
        case_id: named in errors and warnings; the file's name when None.
        max_bytes: the largest uncompressed volume to read.
        keep_integers: leave integers in the type that they are stored in, half as large as float32 for CT.

    Raises:
        CaseError: the scan cannot be read with certainty; the message says why and what to do.
    """
    path = Path(path)
    case_id = case_id or path.name
    scan = _read(path, case_id, max_bytes)
    kept = keep_integers and scan.array.dtype.kind in "iu"
    array = scan.array if kept else _as_float32(scan.array, case_id)
    return Scan(array, scan.affine, scan.spacing_mm, scan.header, path)


def read_label(
    path: Path | str, *, structures: Mapping[str, int], case_id: str | None = None, max_bytes: int = MAX_VOLUME_BYTES
) -> Scan:
    """Read a label map as uint8; no foreground at all is accepted.

    Args:
        path: as for :func:`read_image`.
        structures: the values that may stand beside 0, at most 255.
        case_id: named in errors.
        max_bytes: the largest uncompressed volume to read.

    Raises:
        CaseError: as for an image; or a value is not within 0.001 of an integer, or is no structure's.
    """
    path = Path(path)
    case_id = case_id or path.name
    scan = _read(path, case_id, max_bytes)
    return Scan(_as_label(scan.array, structures, case_id), scan.affine, scan.spacing_mm, scan.header, path)


def read_case(case: Case, *, structures: Mapping[str, int]) -> tuple[Scan, Scan]:
    """A case's image, its integers kept, and its label on the same grid.

    Raises:
        CaseError: it has no label, either cannot be read, or they do not lie on each other.
    """
    if case.label is None:
        raise CaseError(case.case_id, "it has no label", "add its label, or leave it out of the training cases")
    image = read_image(case.image, case_id=case.case_id, keep_integers=True)
    label = read_label(case.label, structures=structures, case_id=case.case_id)
    check_same_grid(image, label, case_id=case.case_id)
    return image, label


def write_label(path: Path | str, label: LabelMap, like: Scan) -> None:
    """Write a label map as ``.nii.gz``, whole or absent, with its scan's shape, matrices, codes, pixdim and units.

    A scan that was not NIfTI gives a new header whose qform and sform both hold its affine.

    Raises:
        ValueError: the label is not uint8, not of the scan's shape, or the path does not end in ``.nii.gz``.
    """
    path = Path(path)
    if not path.name.endswith(".nii.gz"):
        raise ValueError(f"A label map is written as .nii.gz, got the path {path}.")
    if label.dtype != np.uint8 or label.shape != like.array.shape:
        raise ValueError(f"A uint8 label of shape {like.array.shape} is needed, got {label.dtype} {label.shape}.")
    header = like.header if like.header is not None else new_header(label.shape, like.affine)
    with whole_file(path) as unfinished:
        unfinished.write_bytes(encode_label(label, header))


def check_same_grid(image: Scan, label: Scan, *, case_id: str) -> None:
    """Refuse a pair whose voxels do not lie on each other: other shapes, or a corner over half a voxel away.

    A smaller shift is warned of and ignored.

    Raises:
        CaseError: shapes or positions differ.
    """
    if image.array.shape != label.array.shape:
        found = f"the image has the shape {image.array.shape}, its label {label.array.shape}"
        raise CaseError(case_id, found, "give the label of this image")
    apart = displacement_voxels(image.affine, label.affine, image.array.shape)
    if apart > 0.5:
        found = f"image and label lie up to {apart:.1f} voxels apart by their affines"
        raise CaseError(case_id, found, "resample the label to the image's grid, or correct its header")
    if apart > 0.01:
        warn_repaired(case_id, f"image and label lie {apart:.2f} voxels apart; the label is taken to lie on the image")


def _read(path: Path, case_id: str, max_bytes: int) -> Scan:
    if path.is_dir():
        series = read_dicom_series(path, case_id=case_id, max_bytes=max_bytes)
        return Scan(series.array, series.affine, series.spacing_mm, None, path)
    if not path.is_file():
        found = "is no regular file" if path.exists() else "does not exist"
        raise CaseError(case_id, f"{path} {found}", "restore the file or correct its path")
    if is_nifti_name(path):
        nifti = read_nifti(path, case_id=case_id, max_bytes=max_bytes)
        return Scan(nifti.array, nifti.affine, nifti.spacing_mm, nifti.header, path)
    if path.name.lower().endswith(ITK_SUFFIXES):
        volume = read_itk(path, case_id=case_id, max_bytes=max_bytes)
        return Scan(volume.array, volume.affine, volume.spacing_mm, None, path)
    known = ", ".join((".nii", ".nii.gz", *ITK_SUFFIXES))
    raise CaseError(case_id, f"{path.name} is of no known format ({known})", "convert it, or give a DICOM folder")


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
    if share > _MOST_BAD_VOXELS or _touches_body(voxels, finite):
        found = f"{share:.2%} of its voxels are NaN or infinite" + ("" if share > _MOST_BAD_VOXELS else ", in the body")
        raise CaseError(case_id, found, "repair or leave out the scan")
    lowest = voxels[finite].min()
    warn_repaired(case_id, f"{(~finite).sum()} NaN or infinite voxels outside the body are set to {lowest:g}")
    return np.where(finite, voxels, lowest)


def _touches_body(voxels: NDArray[Any], finite: NDArray[np.bool_]) -> bool:
    """Whether about a bad voxel (a box of 5) half of the finite ones are brighter than the mean, or none is finite."""
    from scipy import ndimage  # a tenth of a second, which a scan without such voxels is spared

    body = finite & (np.where(finite, voxels, 0) > voxels[finite].mean(dtype=np.float64))
    bright, known = (ndimage.uniform_filter(mask.astype(np.float32), size=5) for mask in (body, finite))
    return bool((bright >= 0.5 * known)[~finite].any())


def _as_label(voxels: NDArray[Any], structures: Mapping[str, int], case_id: str) -> LabelMap:
    if not all(0 < value < 256 for value in structures.values()):
        raise ValueError(f"Structures have values from 1 to 255, got {dict(structures)}.")
    values = values_of(voxels)
    whole = np.round(values)
    if not np.isfinite(values).all() or np.abs(values - whole).max() > _INTEGER_TOLERANCE:
        found = f"its label holds values that are no integers, such as {_worst(values):g}"
        raise CaseError(case_id, found, "save the label map with integer values")
    if len(values) > _MOST_VALUES:
        found = f"its label holds {len(values)} different values from {values[0]:g} to {values[-1]:g}, as an image does"
        raise CaseError(case_id, found, "give the label as the label; image and label may be swapped")
    unknown = sorted({int(value) for value in whole} - {0, *structures.values()})
    if unknown:
        known = ", ".join(f"{value} {name}" for name, value in structures.items())
        found = f"its label holds {_listed(unknown)}, known are 0 background, {known}"
        raise CaseError(case_id, found, "correct the label or the list of structures")
    return voxels if voxels.dtype == np.uint8 else converted(voxels, np.uint8, np.round)


def _worst(values: NDArray[Any]) -> float:
    distance = np.where(np.isfinite(values), np.abs(values - np.round(values)), np.inf)
    return float(values[int(np.argmax(distance))])


def _listed(values: list[int]) -> str:
    shown = ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
    return f"the value{'s' if len(values) > 1 else ''} {shown}"
