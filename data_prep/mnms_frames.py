"""Cutting the labelled frames out of the 4-D cines of M&Ms, with label values in ACDC's order."""

import gzip
import os
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from data_prep.mnms_layout import PARTS, MnmsFolder, cine_files, find_folder, frame_files
from data_prep.mnms_sheet import SheetRow, checked_row, find_sheet, read_sheet
from data_prep.nifti_file import write_nifti
from uumamba.runtime.errors import CaseError, UsageError
from uumamba.runtime.files import make_folder, whole_file

STORED_VALUES: Mapping[int, int] = {0: 0, 1: 3, 2: 2, 3: 1}
"""The value here (ACDC's: 1 RV, 2 MYO, 3 LV) of each value there (1 LV, 2 MYO, 3 RV)."""

_RESTORE = "restore it from the M&Ms download"
_DAMAGED = (OSError, EOFError, zlib.error, HeaderDataError, WrapStructError)
_GZIP_MAGIC = b"\x1f\x8b"
_COMPRESSION = 4  # level 6 takes twice as long for 3 % less


def cut_frames(
    raw: Path | str, out: Path | str, *, advance: Callable[[int, int], None] = lambda done, total: None
) -> list[CaseError]:
    """Write the ED and ES frame of each labelled patient of M&Ms as 3-D files, label values mapped to ACDC's.

    ``OUT`` gets the folders of the download, in each patient's ``A0S9V9_frame00.nii.gz`` with the voxels, matrices and
    pixdim of the cine, and ``A0S9V9_frame00_gt.nii.gz`` (uint8; 1 RV, 2 MYO, 3 LV), and the information sheet. Frames
    count from 0, as the sheet does. Frames that are newer than their cine stand and are left alone, so that the call
    can be stopped and repeated; equal cines give equal bytes. ``Training/Unlabeled`` is left out.

    Args:
        raw: the download: the folder with ``Training/``, ``Validation/`` and ``Testing/``, or the one above.
        out: where the frames go.
        advance: called with the patients done and their number.

    Returns:
        An error for each patient whose frames could not be cut.

    Raises:
        UsageError: ``raw`` holds no patient or no information sheet, or ``out`` lies in it or cannot be written.
    """
    raw, out = Path(raw), Path(out)
    if out.resolve().is_relative_to(raw.resolve()):
        raise UsageError(f"{out} lies in the raw folder {raw}, which is never written to; choose another folder.")
    folder = find_folder(raw)
    sheet = find_sheet(folder.sheets)
    rows = read_sheet(sheet)
    with whole_file(out / sheet.name) as unfinished:
        unfinished.write_bytes(sheet.read_bytes())
    patients = [(part, patient) for part in PARTS for patient in folder.patients(part)]
    cure = f"{_RESTORE}, or take the row out of the sheet"
    errors = [
        CaseError(name, "the information sheet lists it, but it has no folder", cure) for name in folder.absent(rows)
    ]
    repeated = folder.repeated()
    errors += repeated.values()
    for done, (part, patient) in enumerate(patients, start=1):
        target = make_folder(out / part / patient.name)  # whole or not: folds are dealt to the folders that there are
        try:
            if patient.name not in repeated:
                _cut_patient(patient, target, rows.get(patient.name))
        except CaseError as error:
            errors.append(error)
        advance(done, len(patients))
    _remove_empty(out, {out / part / patient.name for part, patient in patients})
    return sorted(errors, key=lambda error: error.case_id)


def _remove_empty(out: Path, named: Collection[Path]) -> None:
    """Remove folders made for patients whom a part of the download had once; with frames in them they stay."""
    for part in PARTS:
        for patient in MnmsFolder(out, ()).patients(part):
            if patient not in named and not any(patient.iterdir()):
                patient.rmdir()


def _cut_patient(patient: Path, target: Path, row: SheetRow | None) -> None:
    """Both frames with their labels; none of them, of an earlier call either, where one cannot be had."""
    try:
        numbers = checked_row(patient.name, row).frame_numbers(patient.name)
        cut = [_cut_file(patient, target, numbers, kind) for kind in ("image", "label")]
    except CaseError:
        for path in target.glob(f"{patient.name}_frame*.nii.gz"):
            path.unlink()
        raise
    for path, volume, header in chain(*cut):
        write_nifti(path, volume, header, compression=_COMPRESSION)


def _cut_file(
    patient: Path, target: Path, numbers: Mapping[str, int], kind: str
) -> list[tuple[Path, NDArray[Any], nib.Nifti1Header]]:
    """What to write where of the patient's cine, or of its label; nothing where newer files stand."""
    which = ("image", "label").index(kind)
    source = cine_files(patient)[which]
    if not source.is_file():
        raise CaseError(patient.name, f"its {kind} {source.name} is missing", _RESTORE)
    paths = [frame_files(target, number)[which] for number in numbers.values()]
    if all(_is_newer(path, source) for path in paths):
        return []
    header, volumes = read_frames(source, list(numbers.values()), case_id=patient.name)
    if kind == "image":
        return [(path, volume, header) for path, volume in zip(paths, volumes, strict=True)]
    named = [f"frame {number}, the {phase} of the sheet" for phase, number in numbers.items()]
    labels = [_mapped(volume, header, patient.name, where) for volume, where in zip(volumes, named, strict=True)]
    stored = header.copy()
    stored.set_data_dtype(np.uint8)
    stored.set_slope_inter(1, 0)
    stored["cal_min"], stored["cal_max"] = 0, 0
    return [(path, label, stored) for path, label in zip(paths, labels, strict=True)]


def read_frames(path: Path, frames: Sequence[int], *, case_id: str) -> tuple[nib.Nifti1Header, list[NDArray[Any]]]:
    """Some frames of a 4-D NIfTI file as stored, and the header of such a frame; no other frame is held in memory.

    Args:
        path: ``.nii``, compressed or not.
        frames: their numbers, from 0, in any order.
        case_id: named in errors.

    Raises:
        CaseError: the file is damaged, is not 4-D, or has fewer frames.
    """
    try:
        with path.open("rb") as file:
            compressed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
            file.seek(0)
            stream: IO[bytes] = gzip.GzipFile(fileobj=file) if compressed else file  # type: ignore[assignment] # reads
            header = nib.Nifti1Header.from_fileobj(stream, check=False)
            shape, dtype = _checked(header, frames, path, case_id)
            begin, size = int(header["vox_offset"]), int(np.prod(shape)) * dtype.itemsize
            found: dict[int, NDArray[Any]] = {}
            for frame in sorted(set(frames)):
                stream.seek(begin + frame * size)
                content = stream.read(size)
                if len(content) < size:
                    raise CaseError(case_id, f"{path.name} ends within its frame {frame}", _RESTORE)
                found[frame] = np.frombuffer(content, dtype).reshape(shape, order="F")
    except _DAMAGED as error:
        reason = getattr(error, "strerror", None) or error
        raise CaseError(case_id, f"{path.name} cannot be read ({reason})", _RESTORE) from None
    return _of_one_frame(header, shape), [found[frame] for frame in frames]


def _checked(
    header: nib.Nifti1Header, frames: Sequence[int], path: Path, case_id: str
) -> tuple[tuple[int, int, int], np.dtype[Any]]:
    sizes = [int(size) for size in header["dim"]]
    if int(header["sizeof_hdr"]) != header.sizeof_hdr or not header["magic"].item().startswith(b"n+1"):
        raise CaseError(case_id, f"{path.name} is no NIfTI-1 file", _RESTORE)
    if sizes[0] != 4 or min(sizes[1:5]) < 1:
        shape = tuple(sizes[1 : 1 + max(0, min(sizes[0], 7))])
        raise CaseError(case_id, f"{path.name} has the shape {shape}, expected a cine of four axes", _RESTORE)
    if max(frames) >= sizes[4]:
        problem = f"the information sheet gives frame {max(frames)} but {path.name} has {sizes[4]}, counted from 0"
        raise CaseError(case_id, problem, "correct the frame numbers in the sheet")
    try:
        dtype = header.get_data_dtype()
    except KeyError:
        raise HeaderDataError(f"unknown data type {int(header['datatype'])}") from None
    return (sizes[1], sizes[2], sizes[3]), dtype


def _of_one_frame(header: nib.Nifti1Header, shape: tuple[int, int, int]) -> nib.Nifti1Header:
    cut = header.copy()
    cut["dim"] = [3, *shape, 1, 1, 1, 1]
    cut["pixdim"][4:] = 0
    cut["vox_offset"] = cut.single_vox_offset
    return cut


def _mapped(volume: NDArray[Any], header: nib.Nifti1Header, case_id: str, where: str) -> NDArray[np.uint8]:
    slope, intercept = (float(header[name]) for name in ("scl_slope", "scl_inter"))
    values = volume if slope == 0 or not np.isfinite([slope, intercept]).all() else volume * slope + intercept
    label = np.zeros(volume.shape, dtype=np.uint8)
    known = np.zeros(volume.shape, dtype=np.bool_)
    for there, here in STORED_VALUES.items():
        of_structure = np.abs(values - float(there)) <= 1e-3
        label[of_structure] = here
        known |= of_structure
    if not known.all():
        other = values[~known].flat[0]
        found = f"its label holds the value {other:g} in {where}, known are 0 background, 1 LV, 2 MYO, 3 RV"
        raise CaseError(case_id, found, "correct the label")
    if not label.any():  # the masks of M&Ms are empty but in these two frames
        raise CaseError(case_id, f"its label is empty in {where}", "correct the frame numbers in the sheet")
    return label


def _is_newer(file: Path, source: Path) -> bool:
    try:
        return os.stat(file).st_mtime_ns >= os.stat(source).st_mtime_ns
    except OSError:
        return False
