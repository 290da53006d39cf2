"""One door for scan files: the rules that hold for every format."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.formats.dicom import open_dicom
from uumamba.data.formats.dicom_studies import DicomSeries
from uumamba.data.formats.metaimage import METAIMAGE_SUFFIXES, count_metaimage_frames, open_metaimage
from uumamba.data.formats.nifti import NIFTI_SUFFIXES, count_nifti_frames, open_nifti
from uumamba.data.formats.nrrd import NRRD_SUFFIXES, count_nrrd_frames, open_nrrd
from uumamba.data.formats.png import PNG_SUFFIXES, open_png
from uumamba.data.formats.stored_volume import StoredVolume
from uumamba.data.grid import MAX_VOLUME_BYTES, AffineMatrix, Scan, check_size, format_spacing
from uumamba.data.warn import warn_of_pixel_spacing, warn_repaired
from uumamba.runtime.errors import require, require_case
from uumamba.types import SpacingMm

SMALLEST_SPACING_MM, LARGEST_EXTENT_MM = 0.02, 2200.0
_LARGEST_ANGLE_DEG, _EXACT_ANGLE_DEG = 1.0, 0.02
_UNIT_TOLERANCE = 1e-3
_BYTES_IN_MEMORY = 4  # images become float32

Open = Callable[..., StoredVolume]
_FORMATS: tuple[tuple[tuple[str, ...], Open], ...] = (
    (NIFTI_SUFFIXES, open_nifti),
    (METAIMAGE_SUFFIXES, open_metaimage),
    (NRRD_SUFFIXES, open_nrrd),
    (PNG_SUFFIXES, open_png),
)
_FRAME_COUNTERS: dict[Open, Callable[..., int]] = {
    open_nifti: count_nifti_frames,
    open_metaimage: count_metaimage_frames,
    open_nrrd: count_nrrd_frames,
}
DICOM_SUFFIX = ".dcm"
_OTHER_PICTURES = (".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp")
SCAN_SUFFIXES = tuple(sorted((suffix for suffixes, _ in _FORMATS for suffix in suffixes), key=len, reverse=True))
"""Suffixes of files with a whole scan, the longest first; a ``.dcm`` file may be a slice of one."""


@dataclass(frozen=True)
class OpenedScan:
    """Scan whose header was read and whose grid is valid.

    Args:
        stored: the header's description.
        affine: 4 x 4, voxel index to RAS+ millimetres.
        spacing_mm: spacing of the stored axes.
        case_id: name in errors.
    """

    stored: StoredVolume
    affine: AffineMatrix
    spacing_mm: SpacingMm
    case_id: str

    def read(self) -> Scan:
        """Read the voxels as they are stored, with slope and intercept applied."""
        return self._as_scan(self.stored.voxels())

    def read_grid(self) -> Scan:
        """Return the grid with a placeholder that takes no memory.

        If the file's length is not that of its header, it is read in full, so that the error is that of the reader.

        Raises:
            CaseError: the file is damaged.
        """
        if not self.stored.is_complete():
            self.stored.voxels()
        shape = self.stored.shape if self.stored.channels == 1 else (self.stored.channels, *self.stored.shape)
        return self._as_scan(np.broadcast_to(np.uint8(0), shape))

    def _as_scan(self, array: NDArray[Any]) -> Scan:
        return Scan(array, self.affine, self.spacing_mm, self.stored.header, self.stored.path)


def count_stored_frames(path: Path | str, *, case_id: str | None = None) -> int:
    """Return the number of frames in a file's header.

    It is the size of the fourth axis of a 4-D NIfTI, MetaImage or NRRD file, and 1 of any other file.

    Raises:
        CaseError: the file is missing, or its header is damaged.
    """
    path = Path(path)
    case_id = case_id or path.name
    count = _FRAME_COUNTERS.get(_choose_reader(path, case_id))
    return 1 if count is None else count(path, case_id=case_id)


def open_scan(
    path: Path | str | DicomSeries,
    *,
    case_id: str | None = None,
    max_bytes: int = MAX_VOLUME_BYTES,
    assume_spacing_mm: Sequence[float] | None = None,
    channels: int = 1,
    frames: int = 1,
) -> OpenedScan:
    """Read the header of a scan, and check its grid.

    Every spacing must be present, at least 0.02 mm, and no axis longer than 2.2 m. Axes that deviate by up to
    1 degree from right angles are repaired with a warning; a larger shear, as of a tilted gantry, is an error. PNG has
    no spacing: 1 mm per pixel is assumed, with one :class:`uumamba.data.warn.PixelSpacingWarning` per process.

    Args:
        path: a ``.nii``, ``.nii.gz``, ``.mha``, ``.mhd``, ``.nrrd``, ``.nhdr`` or ``.png`` file, a ``.dcm`` file, a
            folder with one DICOM series, or a series chosen in a study.
        case_id: name in errors and warnings; by default the file's name.
        max_bytes: largest volume in memory, as float32 or in a larger dtype of the file.
        assume_spacing_mm: spacing of the stored axes for a scan without a valid one.
        channels: number of channels in the file; several are on the last axis of a NIfTI file, or a PNG's colours.
        frames: number of frames in the file, as of :func:`count_stored_frames`; several are read like channels.

    Raises:
        CaseError: the scan is missing, its header is damaged, its grid is invalid, or it has other channels.
    """
    path = Path(path) if isinstance(path, str) else path
    case_id = case_id or path.name
    reader = _choose_reader(path, case_id)
    require_case(
        channels == 1 or reader in (open_nifti, open_png),
        case_id,
        "image",
        got=path.name,
        expected=f"one file for each of {channels} channels, one 4-D NIfTI file or a colour PNG",
        fix="list the file of each channel",
    )
    several = {name: count for name, count in {"channels": channels, "frames": frames}.items() if count > 1}
    stored = reader(path, case_id=case_id, **several)
    return check_grid(stored, case_id=case_id, max_bytes=max_bytes, assume_spacing_mm=assume_spacing_mm)


def check_grid(
    stored: StoredVolume, *, case_id: str, max_bytes: int, assume_spacing_mm: Sequence[float] | None
) -> OpenedScan:
    """Check size and grid of a volume, as :func:`open_scan`.

    Raises:
        CaseError: the volume is too large or its grid is invalid.
    """
    voxels = stored.channels * math.prod(float(size) for size in stored.shape)
    check_size(voxels * max(stored.dtype.itemsize, _BYTES_IN_MEMORY), case_id, max_bytes)
    spacing = _checked_spacing(stored, case_id, assume_spacing_mm)
    affine = np.eye(4)
    affine[:3, :3] = _orthogonal_directions(stored, case_id) * spacing
    affine[:3, 3] = stored.origin_mm
    require_case(
        bool(np.isfinite(affine).all()),
        case_id,
        "affine",
        got=affine.tolist(),
        expected="finite numbers",
        fix="correct the header",
    )
    first, second, third = map(float, spacing)
    return OpenedScan(stored, affine, (first, second, third), case_id)


def _choose_reader(path: Path | DicomSeries, case_id: str) -> Open:
    if isinstance(path, DicomSeries) or path.is_dir():
        return open_dicom
    require_case(
        path.is_file(),
        case_id,
        "file",
        got=str(path),
        expected="an existing regular file",
        fix="restore the file or correct its path",
    )
    readers = (*_FORMATS, ((DICOM_SUFFIX,), open_dicom))
    reader = next((reader for suffixes, reader in readers if path.name.lower().endswith(suffixes)), None)
    require_case(
        reader is not None,
        case_id,
        "file",
        got=path.name,
        expected=f"a file name that ends in {', '.join(sorted((*SCAN_SUFFIXES, DICOM_SUFFIX)))}",
        fix="convert the picture to PNG, which is lossless"
        if path.name.lower().endswith(_OTHER_PICTURES)
        else "convert the file, or give a DICOM folder",
    )
    assert reader is not None
    return reader


def _checked_spacing(stored: StoredVolume, case_id: str, assumed_mm: Sequence[float] | None) -> NDArray[np.float64]:
    found = _find_spacing_fault(stored.spacing_mm, stored)
    if assumed_mm is None and stored.default_spacing_mm is not None:
        warn_of_pixel_spacing()
        return stored.default_spacing_mm
    if found and assumed_mm is not None:
        spacing = _checked_assumption(stored, assumed_mm)
        warn_repaired(case_id, f"its spacing is {found}; the assumed {format_spacing(spacing)} mm is used")
        return spacing
    has_directions = bool(np.isfinite(stored.directions).all())  # an NRRD axis without a length has none
    require_case(
        not found,
        case_id,
        "spacing_mm",
        got=f"{format_spacing(stored.spacing_mm)} ({found})",
        expected=f"{stored.spacing_key}: at least {SMALLEST_SPACING_MM:g} mm, no axis over {LARGEST_EXTENT_MM:g} mm",
        fix="correct the header" + (", or give --assume-spacing Z,Y,X in mm" if has_directions else ""),
    )
    return stored.spacing_mm


def _checked_assumption(stored: StoredVolume, assumed_mm: Sequence[float]) -> NDArray[np.float64]:
    spacing = np.array(assumed_mm, dtype=np.float64)
    fault = _find_spacing_fault(spacing, stored) if spacing.shape == (3,) else "not three numbers"
    require(not fault, "assume_spacing_mm", got=tuple(assumed_mm), expected="three plausible spacings in mm")
    is_picture = stored.default_spacing_mm is not None
    require(
        not is_picture or spacing[2] >= spacing.max(),  # the axis of the largest spacing is through-plane
        "assume_spacing_mm",
        got=tuple(assumed_mm),
        expected="a slice at least as thick as its pixels",
    )
    return spacing


def _find_spacing_fault(spacing_mm: NDArray[np.float64], stored: StoredVolume) -> str:
    if not (np.isfinite(spacing_mm).all() and (spacing_mm > 0).all()):
        return "missing or not positive"
    if spacing_mm.min() < SMALLEST_SPACING_MM:
        return "too small"
    extents = spacing_mm * stored.shape
    return f"an axis of {extents.max():.0f} mm" if extents.max() > LARGEST_EXTENT_MM else ""


def _orthogonal_directions(stored: StoredVolume, case_id: str) -> NDArray[np.float64]:
    lengths = np.linalg.norm(stored.directions, axis=0)
    require_case(
        bool(np.allclose(lengths, 1, rtol=0, atol=_UNIT_TOLERANCE)),
        case_id,
        "affine",
        got=f"directions of length {format_spacing(lengths)}",
        expected="directions of length 1",
        fix="correct the header",
    )
    directions, angle_deg = _nearest_orthogonal(stored.directions)
    require_case(
        angle_deg <= _LARGEST_ANGLE_DEG,
        case_id,
        "affine",
        got=f"a deviation of {angle_deg:.1f} degrees from right angles between the axes",
        expected="a deviation of at most 1 degree",
        fix="resample the scan to an orthogonal grid",
    )
    if angle_deg <= _EXACT_ANGLE_DEG:
        return stored.directions
    warn_repaired(
        case_id, f"its axes are {angle_deg:.2f} degrees off a right angle; the nearest orthogonal axes are used"
    )
    return directions


def _nearest_orthogonal(directions: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Find the orthogonal matrix nearest to three unit columns.

    The second value is the columns' largest deviation from a right angle in degrees.
    """
    cosines = directions.T @ directions
    largest = float(np.abs(cosines[np.triu_indices(3, k=1)]).max())
    left, _, right = np.linalg.svd(directions)
    return left @ right, float(np.degrees(np.arcsin(min(largest, 1.0))))
