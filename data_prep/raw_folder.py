"""Raw folders of public data sets: their files, scans by number, and cases with a fault left out."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from uumamba.runtime.errors import CaseError, require

Item = TypeVar("Item")
Made = TypeVar("Made")
Scans = Mapping[int, Mapping[str, Sequence[Path]]]
"""Files by case number and kind; more than one where a case is found in several folders."""


def list_files(folder: Path) -> list[Path]:
    """List every regular file of a folder and its subfolders, sorted, without hidden names.

    Links to folders are followed, since shards of a large data set may be on other disks; a folder that is reached
    twice is listed once.

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


def group_scans(files: Iterable[Path], name: re.Pattern[str]) -> Scans:
    """Group files by case number and kind.

    Args:
        files: all files of the raw folder.
        name: matches a scan's file name; its groups are ``number`` and ``kind``.
    """
    scans: dict[int, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in files:
        if match := name.fullmatch(path.name):
            scans[int(match["number"])][match["kind"].lower()].append(path)
    return scans


def check_file(path: Path, *, case_id: str, key: str, fix: str) -> None:
    """Raise a CaseError if a case's file is missing; ``key`` is ``"image"`` or ``"label"``."""
    if not path.is_file():
        raise CaseError(case_id, key, got="no file", expected=path.name, fix=fix)


def only_file(case_id: str, key: str, paths: Sequence[Path], *, name: str, fix: str) -> Path:
    """Return the single file of a case.

    Args:
        case_id: named in errors.
        key: ``"image"`` or ``"label"``.
        paths: files found.
        name: file name expected.
        fix: what to do where there is none.

    Raises:
        CaseError: there is none, or more than one.
    """
    if not paths:
        raise CaseError(case_id, key, got="no file", expected=name, fix=fix)
    if len(paths) > 1:
        raise CaseError(
            case_id, key, got=f"{paths[0]} and {paths[1]}", expected="one file", fix="move one of them away"
        )
    return paths[0]


def collect(make: Callable[[Item], Made], items: Iterable[Item]) -> tuple[list[Made], list[CaseError]]:
    """Apply a function to each item; collect its CaseErrors and go on with the others."""
    made: list[Made] = []
    errors: list[CaseError] = []
    for item in items:
        try:
            made.append(make(item))
        except CaseError as error:
            errors.append(error)
    return made, errors


def check_outside_raw(out: Path, raw: Path) -> None:
    """Raise if an output folder is the raw folder or inside it.

    Raises:
        UsageError: it is; the raw folder is never written to.
    """
    inside = out.resolve().is_relative_to(raw.resolve())
    require(not inside, "out", got=out, expected=f"a folder outside of {raw}, which is only read")
