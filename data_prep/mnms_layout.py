"""Where the patients of M&Ms lie: the folders of the official download, and of the frames that were cut from it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from uumamba.runtime.errors import CaseError, UsageError

PARTS = ("Training/Labeled", "Validation", "Testing")
UNLABELLED = "Training/Unlabeled"
"""Its patients have no label map."""

_EXPECTED = "expected Training/Labeled/A0S9V9/A0S9V9_sa.nii.gz and so on, as in the M&Ms download (OpenDataset)"


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
        """The folders of a part's patients, sorted by their external code."""
        folder = self.root / part
        if not folder.is_dir():
            return []
        return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))

    def absent(self, listed: Iterable[str]) -> list[str]:
        """Listed patients without a folder; none where a part of the download is not there at all."""
        parts = (*PARTS, UNLABELLED)
        if not all((self.root / part).is_dir() for part in parts):
            return []
        return sorted(set(listed) - {patient.name for part in parts for patient in self.patients(part)})

    def repeated(self) -> dict[str, CaseError]:
        """By name, a refusal of each patient with a folder in several labelled parts: trained on or tested with?"""
        places: dict[str, list[str]] = {}
        for part in PARTS:
            for patient in self.patients(part):
                places.setdefault(patient.name, []).append(str(patient))
        cure = "move those away that the M&Ms download does not have"
        return {
            name: CaseError(
                name,
                f"{len(paths)} parts of M&Ms have a folder of it, {' and '.join(paths)}, so its split is not known",
                cure,
            )
            for name, paths in places.items()
            if len(paths) > 1
        }


def find_folder(raw: Path) -> MnmsFolder:
    """Find the parts in a folder or in ``OpenDataset`` below it.

    Raises:
        UsageError: the folder is missing, or holds no patient.
    """
    if not raw.is_dir():
        found = "is a file" if raw.exists() else "does not exist"
        raise UsageError(f"The raw M&Ms folder {raw} {found}; {_EXPECTED}.")
    for root in (raw, raw / "OpenDataset"):
        folder = MnmsFolder(root, (root, root.parent) if root == raw else (root, raw))
        if any(folder.patients(part) for part in PARTS):
            return folder
    raise UsageError(f"No patient folder was found in {raw}; {_EXPECTED}.")


def cine_files(patient: Path) -> tuple[Path, Path]:
    """The 4-D image and label of a patient of the download."""
    return patient / f"{patient.name}_sa.nii.gz", patient / f"{patient.name}_sa_gt.nii.gz"


def frame_files(patient: Path, frame: int) -> tuple[Path, Path]:
    """The 3-D image and label of a patient's frame that was cut out."""
    case_id = frame_id(patient.name, frame)
    return patient / f"{case_id}.nii.gz", patient / f"{case_id}_gt.nii.gz"


def frame_id(patient_id: str, frame: int) -> str:
    """The case of a frame, counted from 0 as in the information sheet.

    Example:
        >>> frame_id("A0S9V9", 9)
        'A0S9V9_frame09'
    """
    return f"{patient_id}_frame{frame:02d}"


def holds_cines(folder: MnmsFolder) -> bool:
    """Whether some patient has a whole cine, as in the download."""
    return any(cine_files(patient)[0].is_file() for part in PARTS for patient in folder.patients(part))
