"""Folders of M&Ms: of the official download, and of the frames that were cut from it."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from uumamba.runtime.errors import CaseError, UsageError

PARTS = ("Training/Labeled", "Validation", "Testing")
UNLABELLED = "Training/Unlabeled"
"""Its patients have no label map."""

_LAYOUT = "a folder with Training/Labeled/A0S9V9/A0S9V9_sa.nii.gz and so on, as in the M&Ms download (OpenDataset)"


@dataclass(frozen=True)
class MnmsFolder:
    """A download of M&Ms, or a folder of frames cut from it: both have the same parts.

    Attributes:
        root: the folder that holds the parts.
        sheets: folders that may hold the information sheet, the likeliest first.
    """

    root: Path
    sheets: tuple[Path, ...]

    def patients(self, part: str) -> list[Path]:
        """List the folders of a part's patients, sorted by their external code."""
        entries = (self.root / part).glob("*")
        return sorted(entry for entry in entries if entry.is_dir() and not entry.name.startswith("."))

    def absent(self, listed: Iterable[str]) -> list[str]:
        """List patients of the sheet without a folder; none where a whole part of the download is missing."""
        parts = (*PARTS, UNLABELLED)
        if not all((self.root / part).is_dir() for part in parts):
            return []
        return sorted(set(listed) - {patient.name for part in parts for patient in self.patients(part)})

    def repeated(self) -> dict[str, CaseError]:
        """Give an error for each patient with folders in several labelled parts, whose split is therefore unknown."""
        places: dict[str, list[str]] = defaultdict(list)
        for part in PARTS:
            for patient in self.patients(part):
                places[patient.name].append(str(patient))
        fix = "move away the folders that the M&Ms download does not have"
        return {
            name: CaseError(name, "part", got=" and ".join(paths), expected="a folder in one part only", fix=fix)
            for name, paths in places.items()
            if len(paths) > 1
        }


def find_folder(raw: Path) -> MnmsFolder:
    """Find the parts in a folder or in ``OpenDataset`` below it.

    Raises:
        UsageError: the folder is missing, or holds no patient.
    """
    for root in (raw, raw / "OpenDataset"):
        folder = MnmsFolder(root, (root, root.parent))
        if any(folder.patients(part) for part in PARTS):
            return folder
    raise UsageError("raw", got=raw, expected=_LAYOUT)


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


def holds_cines(folder: MnmsFolder) -> bool:
    """Tell whether some patient has a whole cine, as in the download."""
    return any(cine_files(patient)[0].is_file() for part in PARTS for patient in folder.patients(part))
