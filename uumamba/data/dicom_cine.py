"""DICOM series with several phases as cines."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from uumamba.data.cine import Cine
from uumamba.data.formats.dicom_phases import has_phases, open_phases
from uumamba.data.formats.dicom_studies import DicomSeries
from uumamba.data.formats.jpeg_process import JpegProcess
from uumamba.data.formats.stored_volume import StoredVolume
from uumamba.data.grid import MAX_VOLUME_BYTES, check_size, displacement_voxels
from uumamba.data.open_scan import DICOM_SUFFIX, OpenedScan, check_grid
from uumamba.data.scan import convert_image
from uumamba.runtime.errors import require_case

_SAME_VOXELS = 0.1


def is_dicom_cine(path: Path | DicomSeries | tuple[Path, ...]) -> bool:
    """Return whether a DICOM folder, file or series has several phases.

    Only headers are read; other files, and the files of several channels, are none.
    """
    if isinstance(path, tuple):
        return False
    if isinstance(path, Path) and not (path.is_dir() or path.name.lower().endswith(DICOM_SUFFIX)):
        return False
    return has_phases(path)


def read_dicom_cine(
    path: Path | DicomSeries,
    *,
    case_id: str,
    max_bytes: int = MAX_VOLUME_BYTES,
    assume_spacing_mm: Sequence[float] | None = None,
) -> Cine:
    """Read a DICOM series with several phases.

    Each frame is what :func:`uumamba.data.scan.read_image` reads from the files of its phase; for their order see
    :func:`uumamba.data.formats.dicom_phases.open_phases`.

    Args:
        path: a folder with one series, an enhanced multi-frame file, or a series chosen in a study.
        case_id: name in errors and warnings.
        max_bytes: largest cine in memory.
        assume_spacing_mm: spacing of the stored axes for a series without a valid one.

    Raises:
        CaseError: as for an image; or a phase lacks a slice, or two phases have different grids.
    """
    with JpegProcess() as process:
        volumes, times_ms = open_phases(path, case_id=case_id, process=process)
        opened = _check_phases(volumes, case_id, max_bytes=max_bytes, assume_spacing_mm=assume_spacing_mm)
        scans = (each.read() for each in opened)
        frames = tuple(replace(scan, array=convert_image(scan.array, case_id)) for scan in scans)
    return Cine(frames, times_ms)


def _check_phases(
    volumes: Sequence[StoredVolume], case_id: str, *, max_bytes: int, assume_spacing_mm: Sequence[float] | None
) -> list[OpenedScan]:
    """Check the size of a cine and the grids of its phases."""
    check_size(4.0 * len(volumes) * float(np.prod(volumes[0].shape, dtype=np.float64)), case_id, max_bytes)
    opened = [
        check_grid(stored, case_id=case_id, max_bytes=max_bytes, assume_spacing_mm=assume_spacing_mm)
        for stored in volumes
    ]
    first = opened[0]
    for number, each in enumerate(opened[1:], start=2):
        apart = displacement_voxels(first.affine, each.affine, first.stored.shape)
        require_case(
            apart <= _SAME_VOXELS,
            case_id,
            "affine",
            got=f"phase {number} {apart:.2f} voxels from phase 1",
            expected="all phases at the same positions",
            fix="choose another series with --series, or give the phases one by one",
        )
    return opened
