"""Files of a raw data set by case, and collected case errors."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from uumamba.runtime.errors import CaseError, require, require_case

Item = TypeVar("Item")
Made = TypeVar("Made")
OTHER_FOLDER = "correct the path; for scans of your own use the configuration folder_2d or folder_3d"
"""Fix of the error about a folder that is no data set."""


def list_files(folder: Path) -> list[Path]:
    """List the files of a folder tree, sorted, without hidden names.

    Links to folders are followed, since shards of a large data set may be on other disks. A folder with several links
    is listed once.

    Example:
        >>> import tempfile
        >>> raw = Path(tempfile.mkdtemp())
        >>> (raw / "1-200").mkdir()
        >>> for name in ("1-200/1.img.nii.gz", "1-200/._1.img.nii.gz"):
        ...     (raw / name).touch()
        >>> [path.name for path in list_files(raw)]
        ['1.img.nii.gz']
    """
    seen: set[str] = set()
    files: list[Path] = []
    for root, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(root) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(root))
        folders[:] = (name for name in folders if not name.startswith("."))
        files += (Path(root, name) for name in names if not name.startswith("."))
    return sorted(path for path in files if path.is_file())


def group_scans(files: Iterable[Path], name: re.Pattern[str]) -> Mapping[int, Mapping[str, Sequence[Path]]]:
    """Group files by case number and kind.

    A group has several files if a case is in several folders.

    Args:
        files: all files of the raw folder.
        name: pattern of a scan's file name, with the groups ``number`` and ``kind``.
    """
    scans: dict[int, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in files:
        if match := name.fullmatch(path.name):
            scans[int(match["number"])][match["kind"].lower()].append(path)
    return scans


def check_file(path: Path, *, case_id: str, key: str, fix: str) -> None:
    """Raise a CaseError if a file of a case is missing.

    Args:
        path: the file.
        case_id: named in the error.
        key: ``"image"`` or ``"label"``.
        fix: remedy for a missing file.
    """
    require_case(path.is_file(), case_id, key, got="no file", expected=path.name, fix=fix)


def select_single_file(case_id: str, key: str, paths: Sequence[Path], *, name: str, fix: str) -> Path:
    """Return the single file of a case.

    Args:
        case_id: named in errors.
        key: ``"image"`` or ``"label"``.
        paths: files found.
        name: file name expected.
        fix: remedy for a missing file.

    Raises:
        CaseError: there is no file, or more than one.
    """
    require_case(paths, case_id, key, got="no file", expected=name, fix=fix)
    require_case(
        len(paths) == 1,
        case_id,
        key,
        got=" and ".join(str(path) for path in paths[:2]),
        expected="one file",
        fix="move one of the two files away",
    )
    return paths[0]


def collect(make: Callable[[Item], Made], items: Iterable[Item]) -> tuple[list[Made], list[CaseError]]:
    """Apply a function to each item and collect its results and CaseErrors."""
    made: list[Made] = []
    errors: list[CaseError] = []
    for item in items:
        try:
            made.append(make(item))
        except CaseError as error:
            errors.append(error)
    return made, errors


def check_output_folder(out: Path, raw: Path, *, key: str = "out") -> None:
    """Raise if an output folder is the raw folder or inside it.

    Args:
        out: the output folder.
        raw: the raw folder, which is only read.
        key: named in the error.

    Raises:
        UsageError: ``out`` is ``raw`` or inside it.
    """
    require(
        not out.resolve().is_relative_to(raw.resolve()),
        key,
        got=out,
        expected=f"a folder outside of the raw folder {raw}",
    )
