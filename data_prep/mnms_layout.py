"""Folders of M&Ms: of the official download, and of the frames that were cut from it."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from uumamba.runtime.errors import CaseError, UsageError

PARTS = ("Training/Labeled", "Validation", "Testing")
UNLABELLED = "Training/Unlabeled"
"""Its patients have no label map."""

_LAYOUT = "a folder with Training/Labeled/A0S9V9/A0S9V9_sa.nii.gz and so on, as in the M&Ms download (OpenDataset)"


def find_folder(raw: Path) -> Path:
    """Find the folder that holds the parts: a folder itself or ``OpenDataset`` below it.

    Raises:
        UsageError: the folder is missing, or holds no patient.
    """
    for root in (raw, raw / "OpenDataset"):
        if any(list_patients(root, part) for part in PARTS):
            return root
    raise UsageError("raw", got=raw, expected=_LAYOUT)


def list_patients(root: Path, part: str) -> list[Path]:
    """List the folders of a part's patients, sorted by their external code."""
    entries = (root / part).glob("*")
    return sorted(entry for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def find_absent(root: Path, listed: Iterable[str]) -> list[str]:
    """List patients of the sheet without a folder; none where a whole part of the download is missing."""
    parts = (*PARTS, UNLABELLED)
    if not all((root / part).is_dir() for part in parts):
        return []
    return sorted(set(listed) - {patient.name for part in parts for patient in list_patients(root, part)})


def find_repeated(root: Path) -> dict[str, CaseError]:
    """Give an error for each patient with folders in several labelled parts, whose split is therefore unknown."""
    places: dict[str, list[str]] = defaultdict(list)
    for part in PARTS:
        for patient in list_patients(root, part):
            places[patient.name].append(str(patient))
    fix = "move away the folders that the M&Ms download does not have"
    return {
        name: CaseError(name, "part", got=" and ".join(paths), expected="a folder in one part only", fix=fix)
        for name, paths in places.items()
        if len(paths) > 1
    }


def cine_files(patient: Path) -> tuple[Path, Path]:
    """Name the 4-D image and label of a patient of the download."""
    return patient / f"{patient.name}_sa.nii.gz", patient / f"{patient.name}_sa_gt.nii.gz"


def frame_files(patient: Path, frame: int) -> tuple[Path, Path]:
    """Name the 3-D image and label of a frame that was cut from a patient's cine."""
    case_id = frame_id(patient.name, frame)
    return patient / f"{case_id}.nii.gz", patient / f"{case_id}_gt.nii.gz"


def frame_id(patient_id: str, frame: int) -> str:
    """Name the case of a frame, counted from 0 as in the information sheet.

    Example:
        >>> frame_id("A0S9V9", 9)
        'A0S9V9_frame09'
    """
    return f"{patient_id}_frame{frame:02d}"


def holds_cines(root: Path) -> bool:
    """Tell whether some patient has a whole cine, as in the download."""
    return any(cine_files(patient)[0].is_file() for part in PARTS for patient in list_patients(root, part))
