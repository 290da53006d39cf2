"""MetaImage, NRRD and DICOM, read by SimpleITK; its LPS+ world becomes RAS+."""

import locale
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uumamba.data.grid import Scan, check_size
from uumamba.runtime.errors import CaseError, require_case

ITK_SUFFIXES = (".mha", ".mhd", ".nrrd")
_RESTORE = "restore it from its source"
_POSITION_TOLERANCE = 0.02  # of the mean step between slices


def read_itk(path: Path, *, case_id: str, max_bytes: int) -> Scan:
    """Read one MetaImage or NRRD file.

    Raises:
        CaseError: the file is damaged, too large, or holds anything but one scalar volume.
    """
    sitk = _simple_itk()
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        _check_announced(reader, case_id, max_bytes)
        return _to_scan(reader.Execute(), path, case_id)
    except RuntimeError as error:
        raise _unreadable(path, error, case_id) from None


def read_dicom_series(folder: Path, *, case_id: str, max_bytes: int) -> Scan:
    """Read the one DICOM series of a folder, its slices sorted by position.

    Raises:
        CaseError: there is no series or more than one, slices are missing or double, or a file is damaged.
    """
    sitk = _simple_itk()
    before = locale.setlocale(locale.LC_ALL)  # ITK's DICOM code sets the C locale, where Python reads text as ASCII
    try:
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        require_case(
            len(series) == 1,
            case_id,
            "file",
            got=f"a folder with {len(series)} DICOM series",
            expected="one series",
            fix="give a folder with one series, or a scan file",
        )
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
        _check_slices(names, case_id, max_bytes)
        return _to_scan(sitk.ReadImage(names), folder, case_id)
    except RuntimeError as error:
        raise _unreadable(folder, error, case_id) from None
    finally:
        locale.setlocale(locale.LC_ALL, before)


def _simple_itk() -> Any:
    """Import SimpleITK for the first scan that needs it.

    It takes a third of a second, and NIfTI does without.
    """
    import SimpleITK

    return SimpleITK


def _check_announced(reader: Any, case_id: str, max_bytes: int) -> None:
    components = reader.GetNumberOfComponents()
    require_case(
        components == 1,
        case_id,
        "shape",
        got=f"{components} values a voxel",
        expected="one (no vectors or colours)",
        fix="give one scalar volume",
    )
    check_size(float(np.prod([float(size) for size in reader.GetSize()])) * 8, case_id, max_bytes)


def _check_slices(names: Sequence[str], case_id: str, max_bytes: int) -> None:
    """Refuse a stack with a gap or a double slice.

    The series reader would space its slices evenly without a warning.
    """
    sitk = _simple_itk()
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
        got=f"slices {steps.min():.2f} to {steps.max():.2f} mm apart",
        expected="one distance",
        fix="restore missing slices, remove double ones",
    )


def _to_scan(image: Any, path: Path, case_id: str) -> Scan:
    sitk = _simple_itk()
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
        fix="pick one frame and save it as a 3-D scan",
    )
    kind, expected = image.GetPixelIDTypeAsString(), "integers or real numbers"
    require_case(
        image.GetNumberOfComponentsPerPixel() == 1 and "complex" not in kind,
        case_id,
        "dtype",
        got=kind,
        expected=expected,
        fix="give one scalar volume",
    )
    spacing = np.array(image.GetSpacing())
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * spacing
    lps[:3, 3] = image.GetOrigin()
    array, affine = sitk.GetArrayFromImage(image).transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    return Scan(array, affine, tuple(map(float, spacing)), None, path)


def _unreadable(path: Path, error: RuntimeError, case_id: str) -> CaseError:
    """Error with the last line of ITK's long message.

    The paths in front of the reason are left out.
    """
    reason = str(error).strip().rpartition("\n")[2].rpartition("ITK ERROR: ")[2]
    return CaseError(case_id, "file", got=f"{path.name} ({reason})", expected="a readable scan", fix=_RESTORE)
