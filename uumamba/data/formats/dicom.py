"""DICOM series through SimpleITK."""

import locale
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uumamba.data.formats.stored_volume import LPS_TO_RAS, StoredVolume
from uumamba.runtime.errors import CaseError, require_case

_RESTORE = "restore it from its source"
_POSITION_TOLERANCE = 0.02  # of the mean step between slices


def open_dicom(folder: Path, *, case_id: str) -> StoredVolume:
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
        _check_slices(SimpleITK, names, case_id)
        return _to_volume(SimpleITK, SimpleITK.ReadImage(names), folder, case_id)
    except RuntimeError as error:
        raise _make_read_error(folder, error, case_id) from None
    finally:
        locale.setlocale(locale.LC_ALL, before)


def _check_slices(sitk: Any, names: Sequence[str], case_id: str) -> None:
    """Check that the slices of a series are equally spaced.

    SimpleITK's reader accepts missing and double slices without a warning.
    """
    positions = []
    for name in names:
        reader = sitk.ImageFileReader()
        reader.SetFileName(name)
        reader.ReadImageInformation()
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


def _to_volume(sitk: Any, image: Any, path: Path, case_id: str) -> StoredVolume:
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = sitk.Extract(image, [*image.GetSize()[:3], 0])
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    return StoredVolume(
        path=path,
        shape=array.shape,
        dtype=array.dtype,
        directions=LPS_TO_RAS[:, None] * np.array(image.GetDirection()).reshape(3, 3),
        origin_mm=LPS_TO_RAS * np.array(image.GetOrigin()),
        spacing_mm=np.array(image.GetSpacing()),
        spacing_key="PixelSpacing",
        voxels=lambda: array,
        is_complete=lambda: True,
    )


def _make_read_error(path: Path, error: RuntimeError, case_id: str) -> CaseError:
    """Make an error from the reason in ITK's message.

    The reason is on the last line, after paths.
    """
    reason = str(error).strip().rpartition("\n")[2].rpartition("ITK ERROR: ")[2]
    return CaseError(case_id, "file", got=f"{path.name} ({reason})", expected="a readable scan", fix=_RESTORE)
