"""Folder layout of the M&Ms download and of its cut frames."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from data_prep.raw_folder import OTHER_FOLDER
from uumamba.runtime.errors import CaseError, UsageError

PARTS = ("Training/Labeled", "Validation", "Testing")
UNLABELLED = "Training/Unlabeled"
"""Patients without label maps."""

_LAYOUT = "a folder with Training/Labeled/A0S9V9/A0S9V9_sa.nii.gz and so on, as in the M&Ms download (OpenDataset)"


def find_folder(raw: Path) -> Path:
    """Find the folder of the parts: ``raw`` or its ``OpenDataset``.

    Raises:
        UsageError: the folder is missing, or holds no patient.
    """
    for root in (raw, raw / "OpenDataset"):
        if any(list_patients(root, part) for part in PARTS):
            return root
    raise UsageError("raw", got=raw, expected=_LAYOUT, fix=OTHER_FOLDER)


def list_patients(root: Path, part: str) -> list[Path]:
    """List the patient folders of a part, sorted by external code."""
    return sorted(entry for entry in (root / part).glob("*") if entry.is_dir() and not entry.name.startswith("."))


def find_absent(root: Path, listed: Iterable[str]) -> list[str]:
    """List patients of the sheet without a folder.

    The list is empty if a part of the download is missing.
    """
    parts = (*PARTS, UNLABELLED)
    if not all((root / part).is_dir() for part in parts):
        return []
    return sorted(set(listed) - {patient.name for part in parts for patient in list_patients(root, part)})


def find_repeated(root: Path) -> dict[str, CaseError]:
    """Create an error for each patient with folders in several labelled parts.

    The split of such a patient is unknown.
    """
    places: dict[str, list[str]] = defaultdict(list)
    for part in PARTS:
        for patient in list_patients(root, part):
            places[patient.name].append(str(patient))
    fix = "remove the folders that are not part of the M&Ms download"
    return {
        name: CaseError(name, "part", got=" and ".join(paths), expected="a folder in one part only", fix=fix)
        for name, paths in places.items()
        if len(paths) > 1
    }


def list_cine_files(patient: Path) -> tuple[Path, Path]:
    """Return the paths of a patient's 4-D image and label."""
    return patient / f"{patient.name}_sa.nii.gz", patient / f"{patient.name}_sa_gt.nii.gz"


def list_frame_files(patient: Path, frame: int) -> tuple[Path, Path]:
    """Return the paths of a cut frame's 3-D image and label."""
    case_id = format_frame_id(patient.name, frame)
    return patient / f"{case_id}.nii.gz", patient / f"{case_id}_gt.nii.gz"


def format_frame_id(patient_id: str, frame: int) -> str:
    """Return the case id of a frame, counted from 0.

    Example:
        >>> format_frame_id("A0S9V9", 9)
        'A0S9V9_frame09'
    """
    return f"{patient_id}_frame{frame:02d}"


def holds_cines(root: Path) -> bool:
    """Return whether some patient has a 4-D cine, as in the download."""
    return any(list_cine_files(patient)[0].is_file() for part in PARTS for patient in list_patients(root, part))
