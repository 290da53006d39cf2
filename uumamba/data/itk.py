"""MetaImage, NRRD and DICOM, read by SimpleITK; its LPS+ world becomes RAS+."""

import locale
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.runtime.errors import CaseError

ITK_SUFFIXES = (".mha", ".mhd", ".nrrd")
_RESTORE = "restore it from its source"
_POSITION_TOLERANCE = 0.02  # of the mean step between slices


@dataclass(frozen=True)
class ItkVolume:
    """Voxels with the first axis fastest in the file, the affine to RAS+ millimetres and the spacing."""

    array: NDArray[Any]
    affine: NDArray[np.float64]
    spacing_mm: tuple[float, float, float]


def read_itk(path: Path, *, case_id: str, max_bytes: int) -> ItkVolume:
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
        return _to_volume(reader.Execute(), case_id)
    except RuntimeError as error:
        raise CaseError(case_id, f"{path.name} cannot be read ({_reason(error)})", _RESTORE) from None


@contextmanager
def _locale_kept() -> Iterator[None]:
    """ITK's DICOM code leaves the process in the C locale, where Python would read text files as ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


@_locale_kept()
def read_dicom_series(folder: Path, *, case_id: str, max_bytes: int) -> ItkVolume:
    """Read the one DICOM series of a folder, its slices sorted by position.

    Raises:
        CaseError: there is no series or more than one, slices are missing or double, or it cannot be decoded.
    """
    sitk = _simple_itk()

    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        cure = "give a folder with one series" if series else "give a folder of DICOM files, or a scan file"
        raise CaseError(case_id, f"the folder holds {len(series)} DICOM series", cure)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    try:
        _check_slices(names, case_id, max_bytes)
        return _to_volume(sitk.ReadImage(names), case_id)
    except RuntimeError as error:
        raise CaseError(case_id, f"the DICOM series cannot be read ({_reason(error)})", _RESTORE) from None


def _simple_itk() -> Any:
    """SimpleITK, imported by the first scan that needs it: it takes a third of a second, and NIfTI does without."""
    import SimpleITK

    return SimpleITK


def _check_announced(reader: Any, case_id: str, max_bytes: int) -> None:
    if reader.GetNumberOfComponents() != 1:
        found = f"it holds {reader.GetNumberOfComponents()} values a voxel (vectors or colours)"
        raise CaseError(case_id, found, "give one scalar volume")
    announced = float(np.prod([float(size) for size in reader.GetSize()])) * 8
    if announced > max_bytes:
        found = f"its header announces up to {announced / 2**30:.1f} GiB, the limit is {max_bytes / 2**30:.1f}"
        raise CaseError(case_id, found, "crop or downsample the scan")


def _check_slices(names: Sequence[str], case_id: str, max_bytes: int) -> None:
    """Refuse a stack with a gap or a double slice: the series reader would give it even spacing without a word."""
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
    if steps.min() <= _POSITION_TOLERANCE * steps.mean():
        raise CaseError(case_id, "two slices of the DICOM series lie at one place", "leave out the double slice")
    if np.ptp(steps) > 2 * _POSITION_TOLERANCE * steps.mean():
        found = f"slices of the DICOM series lie {steps.min():.2f} to {steps.max():.2f} mm apart"
        raise CaseError(case_id, found, "restore the missing slices")


def _to_volume(image: Any, case_id: str) -> ItkVolume:
    sitk = _simple_itk()

    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = sitk.Extract(image, [*image.GetSize()[:3], 0])
    if image.GetDimension() == 2:
        image = sitk.JoinSeries(image)
    if image.GetDimension() != 3:
        found = f"it is {image.GetDimension()}-D, with the shape {image.GetSize()}"
        raise CaseError(case_id, found, "pick one frame and save it as a 3-D scan")
    if image.GetNumberOfComponentsPerPixel() != 1 or "complex" in image.GetPixelIDTypeAsString():
        raise CaseError(case_id, f"its voxels are {image.GetPixelIDTypeAsString()}", "give one scalar volume")
    spacing = np.array(image.GetSpacing())
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * spacing
    lps[:3, 3] = image.GetOrigin()
    first, second, third = (float(mm) for mm in spacing)
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    return ItkVolume(array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps, (first, second, third))


def _reason(error: RuntimeError) -> str:
    """The last line of ITK's long message, without the paths in front of it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rpartition("ITK ERROR: ")[2] if lines else type(error).__name__
