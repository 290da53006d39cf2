"""Labelled frames of M&Ms cines as 3-D files with ACDC's label values."""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.fileslice import fileslice
from nibabel.openers import ImageOpener
from numpy.typing import NDArray

from data_prep.mnms_layout import (
    PARTS,
    find_absent,
    find_folder,
    find_repeated,
    list_cine_files,
    list_frame_files,
    list_patients,
)
from data_prep.mnms_sheet import SheetRow, find_sheet, parse_frames, read_sheet
from data_prep.nifti_file import write_nifti
from data_prep.raw_folder import check_file, check_output_folder
from data_prep.scan_files import DAMAGED
from uumamba.runtime.errors import CaseError, require_case
from uumamba.runtime.files import make_folder, open_regular, remove_file, whole_file, write_json
from uumamba.runtime.text_files import MAX_SHEET_BYTES, load_json, read_limited

STORED_VALUES: Mapping[int, int] = {0: 0, 1: 3, 2: 2, 3: 1}
"""ACDC's label value (1 RV, 2 MYO, 3 LV) of each value of M&Ms (1 LV, 2 MYO, 3 RV)."""

SOURCES_NAME = ".sources.json"
"""Hashes of the cine files that a patient's frames were cut from."""
FRAMES_VERSION = 1  # increased whenever equal cines would give other frames

_RESTORE = "restore the file from the M&Ms download"
_UNKNOWN = 255
_COMPRESSION = 4  # level 6 takes twice as long for 3 % less


def cut_frames(
    raw: Path | str, out: Path | str, *, advance: Callable[[int, int], None] = lambda done, total: None
) -> list[CaseError]:
    """Write the labelled frames (ED and ES) of M&Ms as 3-D files.

    ``out`` gets the information sheet and the folders of the download. A patient's folder holds
    ``A0S9V9_frame00.nii.gz``, with the voxels, matrices and pixdim of the cine, and ``A0S9V9_frame00_gt.nii.gz``
    (uint8; 1 RV, 2 MYO, 3 LV). Frames count from 0, as in the sheet. Frames are kept while the bytes of their cine and
    its labels have the hashes in ``.sources.json``, so that the call can be stopped and repeated; equal cines give
    equal bytes. ``Training/Unlabeled`` is left out.

    Args:
        raw: the folder with ``Training/``, ``Validation/`` and ``Testing/``, or its parent.
        out: folder for the frames.
        advance: called with the number of patients done and of all.

    Returns:
        An error for each patient whose frames could not be cut.

    Raises:
        UsageError: ``raw`` holds no patient or no information sheet, or ``out`` is inside of ``raw`` or cannot be
            written.
    """
    raw, out = Path(raw), Path(out)
    check_output_folder(out, raw)
    root = find_folder(raw)
    sheet = find_sheet(root)
    rows = read_sheet(sheet)
    with whole_file(out / sheet.name) as unfinished:
        unfinished.write_bytes(read_limited(sheet, most=MAX_SHEET_BYTES))
    patients = [(part, patient) for part in PARTS for patient in list_patients(root, part)]
    fix = "restore the folder from the M&Ms download, or remove the row from the sheet"
    expected = "a folder of each patient in the information sheet"
    repeated = find_repeated(root)
    errors = [
        *(CaseError(name, "folder", got="none", expected=expected, fix=fix) for name in find_absent(root, rows)),
        *repeated.values(),
    ]
    for done, (part, patient) in enumerate(patients, start=1):
        target = make_folder(out / part / patient.name)  # also for a faulty patient: folds are dealt to all folders
        try:
            if patient.name not in repeated:
                _cut_patient(patient, target, rows.get(patient.name))
        except CaseError as error:
            errors.append(error)
        advance(done, len(patients))
    _remove_empty(out, {out / part / patient.name for part, patient in patients})
    return sorted(errors, key=lambda error: error.case_id)


def _remove_empty(out: Path, kept: Collection[Path]) -> None:
    """Remove empty folders of patients missing from the download."""
    for part in PARTS:
        for patient in list_patients(out, part):
            if patient not in kept and not any(patient.iterdir()):
                patient.rmdir()


def _cut_patient(patient: Path, target: Path, row: SheetRow | None) -> None:
    """Write both frames of a patient with their labels.

    If a frame is faulty, all frames of the patient are removed, including those of an earlier call.
    """
    sources = dict(zip(("image", "label"), list_cine_files(patient), strict=True))
    try:
        numbers = parse_frames(patient.name, row)
        for key, source in sources.items():
            check_file(source, case_id=patient.name, key=key, fix=_RESTORE)
        paths = [list_frame_files(target, number) for number in numbers.values()]
        hashes = {name: _hash_source(source, patient.name) for name, source in sources.items()}
        origin = {"version": FRAMES_VERSION} | hashes
        if all(file.is_file() for pair in paths for file in pair) and _read_key(target / SOURCES_NAME) == origin:
            return
        remove_file(target / SOURCES_NAME)  # a stopped call leaves frames without a key
        header, images = read_frames(sources["image"], list(numbers.values()), case_id=patient.name)
        label_header, stored = read_frames(sources["label"], list(numbers.values()), case_id=patient.name)
        labels = [
            _map_label(volume, label_header, patient.name, f"in frame {number} ({phase})")
            for volume, (phase, number) in zip(stored, numbers.items(), strict=True)
        ]
    except CaseError:
        for path in (*target.glob(f"{patient.name}_frame*.nii.gz"), target / SOURCES_NAME):
            remove_file(path)
        raise
    label_header.set_data_dtype(np.uint8)
    label_header.set_slope_inter(1, 0)
    label_header["cal_min"], label_header["cal_max"] = 0, 0
    for (image_path, label_path), image, label in zip(paths, images, labels, strict=True):
        write_nifti(image_path, image, header, compression=_COMPRESSION)
        write_nifti(label_path, label, label_header, compression=_COMPRESSION)
    write_json(target / SOURCES_NAME, origin)


def read_frames(path: Path, frames: Sequence[int], *, case_id: str) -> tuple[Any, list[NDArray[Any]]]:
    """Read some frames of a 4-D NIfTI file.

    Other frames are not held in memory.

    Args:
        path: ``.nii``, compressed or not.
        frames: frame numbers, from 0, in any order.
        case_id: named in errors.

    Returns:
        The header of a 3-D frame, and the voxels of each frame as stored.

    Raises:
        CaseError: the file is damaged, is not 4-D, or has fewer frames.
    """
    try:
        with ImageOpener(str(path)) as stream:
            header: Any = nib.Nifti1Header(stream.read(nib.Nifti1Header.sizeof_hdr), check=False)
            shape = header.get_data_shape()
            is_cine = int(header["sizeof_hdr"]) == header.sizeof_hdr and len(shape) == 4 and min(shape) >= 1
            found, expected = f"the shape {shape}", "a cine of 4 axes"
            require_case(is_cine, case_id, path.name, got=found, expected=expected, fix=_RESTORE)
            require_case(
                max(frames) < shape[3],
                case_id,
                "frame",
                got=max(frames),
                expected=f"one of the frames 0 to {shape[3] - 1} of {path.name}",
                fix="correct the frame number in the sheet",
            )
            dtype, begin = header.get_data_dtype(), int(header["vox_offset"])
            volumes = [fileslice(stream, (..., frame), shape, dtype, begin, "F") for frame in frames]
    except CaseError:
        raise
    except DAMAGED as error:
        raise CaseError(case_id, path.name, got=str(error), expected="a NIfTI-1 file", fix=_RESTORE) from None
    header["dim"] = [3, *shape[:3], 1, 1, 1, 1]
    header["pixdim"][4:] = 0
    header["vox_offset"] = header.single_vox_offset
    return header, volumes


def _map_label(volume: NDArray[Any], header: Any, case_id: str, place: str) -> NDArray[np.uint8]:
    slope, intercept = (float(header[name]) for name in ("scl_slope", "scl_inter"))
    values = volume if slope == 0 or not np.isfinite([slope, intercept]).all() else volume * slope + intercept
    equal = [np.abs(values - float(stored)) <= 1e-3 for stored in STORED_VALUES]
    label = np.select(equal, list(STORED_VALUES.values()), _UNKNOWN).astype(np.uint8)
    unknown = values[label == _UNKNOWN].tolist()
    found = f"the value {unknown[0]:g} {place}" if unknown else ""
    expected = "0 background, 1 LV, 2 MYO, 3 RV"
    require_case(not unknown, case_id, "label", got=found, expected=expected, fix="correct the label")
    require_case(
        label.any(),  # label maps of M&Ms are empty in all other frames
        case_id,
        "label",
        got=f"no structure {place}",
        expected="1 LV, 2 MYO and 3 RV",
        fix="correct the frame numbers in the sheet",
    )
    return label


def _hash_source(path: Path, case_id: str) -> str:
    try:
        with open_regular(path) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        found = error.strerror
        raise CaseError(case_id, path.name, got=found, expected="a readable file", fix=_RESTORE) from None


def _read_key(path: Path) -> Any:
    """Read the stored hashes; None if the file is missing or damaged."""
    try:
        return load_json(path)
    except (OSError, ValueError):
        return None
