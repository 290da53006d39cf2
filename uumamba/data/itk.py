"""Readers of MetaImage, NRRD and DICOM through SimpleITK."""

import locale
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uumamba.data.grid import AffineMatrix, Scan, check_size
from uumamba.runtime.errors import CaseError, require_case

ITK_SUFFIXES = (".mha", ".mhd", ".nrrd")
_RESTORE = "restore it from its source"
_POSITION_TOLERANCE = 0.02  # of the mean step between slices


def read_itk(path: Path, *, case_id: str, max_bytes: int) -> Scan:
    """Read one MetaImage or NRRD file.

    Raises:
        CaseError: the file is damaged, too large, or not one scalar volume.
    """
    import SimpleITK  # takes 0.3 s

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        _check_announced(reader, case_id, max_bytes)
        return _to_scan(SimpleITK, reader.Execute(), path, case_id)
    except RuntimeError as error:
        raise _make_read_error(path, error, case_id) from None


def read_dicom_series(folder: Path, *, case_id: str, max_bytes: int) -> Scan:
    """Read the DICOM series of a folder, sorted by slice position.

    Raises:
        CaseError: the folder does not hold exactly one series, slices are missing or double, or a file is damaged.
    """
    import SimpleITK  # takes 0.3 s

    before = locale.setlocale(locale.LC_ALL)  # ITK changes it to C, in which Python reads text as ASCII
    try:
        series = SimpleITK.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        require_case(
            len(series) == 1,
            case_id,
            "file",
            got=f"a folder with {len(series)} DICOM series",
            expected="one series",
            fix="give a folder with one series, or a scan file",
        )
        names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
        _check_slices(SimpleITK, names, case_id, max_bytes)
        return _to_scan(SimpleITK, SimpleITK.ReadImage(names), folder, case_id)
    except RuntimeError as error:
        raise _make_read_error(folder, error, case_id) from None
    finally:
        locale.setlocale(locale.LC_ALL, before)


def _check_announced(reader: Any, case_id: str, max_bytes: int) -> None:
    components = reader.GetNumberOfComponents()
    require_case(
        components == 1,
        case_id,
        "shape",
        got=f"{components} values per voxel",
        expected="one value per voxel",
        fix="give one scalar volume",
    )
    check_size(float(np.prod([float(size) for size in reader.GetSize()])) * 8, case_id, max_bytes)


def _check_slices(sitk: Any, names: Sequence[str], case_id: str, max_bytes: int) -> None:
    """Check that the slices of a series are equally spaced.

    SimpleITK's reader accepts missing and double slices without a warning.
    """
    positions = []
    for name in names:
        reader = sitk.ImageFileReader()
        reader.SetFileName(name)
        reader.ReadImageInformation()
        _check_announced(reader, case_id, max_bytes // len(names))
        directions = np.array(reader.GetDirection()).reshape(reader.GetDimension(), -1)[:3, :3]
        positions.append(float(directions[:, 2] @ np.array(reader.GetOrigin()[:3])))
    steps = np.abs(np.diff(sorted(positions)))
    if len(steps) == 0:
        return
    require_case(
        np.ptp(steps) <= 2 * _POSITION_TOLERANCE * steps.mean() and steps.min() > _POSITION_TOLERANCE * steps.mean(),
        case_id,
        "spacing_mm",
        got=f"distances of {steps.min():.2f} to {steps.max():.2f} mm between slices",
        expected="equal distances between slices",
        fix="restore missing slices and remove double ones",
    )


def _to_scan(sitk: Any, image: Any, path: Path, case_id: str) -> Scan:
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = sitk.Extract(image, [*image.GetSize()[:3], 0])
    if image.GetDimension() == 2:
        image = sitk.JoinSeries(image)
    require_case(
        image.GetDimension() == 3,
        case_id,
        "shape",
        got=image.GetSize(),
        expected="one 3-D volume",
        fix="save one frame as a 3-D scan",
    )
    kind = image.GetPixelIDTypeAsString()
    require_case(
        image.GetNumberOfComponentsPerPixel() == 1 and "complex" not in kind,
        case_id,
        "dtype",
        got=kind,
        expected="integers or real numbers",
        fix="give one scalar volume",
    )
    return Scan(sitk.GetArrayFromImage(image).transpose(2, 1, 0), read_affine(image), image.GetSpacing(), None, path)


def read_affine(image: Any) -> AffineMatrix:
    """Read the RAS+ affine of a 3-D image or its reader."""
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def _make_read_error(path: Path, error: RuntimeError, case_id: str) -> CaseError:
    """Make an error from the reason in ITK's message.

    The reason is on the last line, after paths.
    """
    reason = str(error).strip().rpartition("\n")[2].rpartition("ITK ERROR: ")[2]
    return CaseError(case_id, "file", got=f"{path.name} ({reason})", expected="a readable scan", fix=_RESTORE)
