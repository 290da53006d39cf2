"""Cases of a layout before their files are looked for."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uumamba.data.case import Case, Split
from uumamba.data.case_files import FilePath, name_case
from uumamba.runtime.errors import CaseError, UsageError, require, require_case
from uumamba.runtime.files import find_read_fix
from uumamba.runtime.text_files import load_json

ONLY_CHANNEL = "image"
"""Name of the only channel where a layout gives none."""
OPTIONAL_KEYS: Mapping[str, Sequence[str]] = {
    "case_id": ("case", "case_id"),
    "patient_id": ("patient", "patient_id"),
    "domain": ("domain",),
    "phase": ("phase",),
    "group": ("group",),
}
"""Names that a column or a key of an entry may have, by field of a case."""


@dataclass(frozen=True)
class Listing:
    """Cases that a layout lists, some of whose files may be missing.

    Args:
        cases: a patient or domain that is not given is empty.
        failures: entries that are no case.
        channels: number of files that an image may have, by the channels' names.
        about: fields of the manifest that the layout's file gives.
    """

    cases: Sequence[Case]
    failures: Sequence[CaseError] = ()
    channels: tuple[str, ...] = (ONLY_CHANNEL,)
    about: Mapping[str, Any] = field(default_factory=dict)


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        UsageError: the file is missing, damaged or holds another value.
    """
    fix = "restore the file"
    try:
        stored = load_json(path)
    except OSError as error:
        raise UsageError(
            str(path), got=error.strerror, expected="a JSON file", fix=find_read_fix(error, otherwise=fix)
        ) from None
    except ValueError as error:
        raise UsageError(str(path), got=error, expected="a JSON file", fix=fix) from None
    require(isinstance(stored, dict), str(path), got=f"a {type(stored).__name__}", expected="an object", fix=fix)
    return dict(stored)


def make_case(folder: Path, given: Mapping[str, Any], *, place: str, split: Split, fold: int | None = None) -> Case:
    """Make a case from an entry of a list or table.

    Args:
        folder: paths are relative to it.
        given: ``image`` (a path or several), ``label`` and :data:`OPTIONAL_KEYS`; empty texts are not given.
        place: name of the entry in errors, where it has no case id.
        split: the case's split.
        fold: the case's validation fold.

    Raises:
        CaseError: a path is missing or no text.
    """
    images = given.get("image")
    paths = images if isinstance(images, list | tuple) and images else [images]
    texts = {field: _find_text(given, names, place) for field, names in OPTIONAL_KEYS.items()}
    case_id = texts["case_id"] or (name_case(Path(paths[0])) if isinstance(paths[0], str) else "") or place
    found = [_find_path(folder, path, case_id, "image") for path in paths]
    label = given.get("label") or None
    return Case(
        case_id,
        texts["patient_id"],
        texts["domain"],
        join_channels(found),
        label=None if label is None else _find_path(folder, label, case_id, "label"),
        fold=fold,
        phase=texts["phase"] or None,
        group=texts["group"] or None,
        split=split,
    )


def join_channels(paths: Sequence[Path]) -> FilePath:
    """Return the image of a case: its only path, or several."""
    return tuple(paths) if len(paths) > 1 else paths[0]


def join(folder: Path, path: str) -> Path:
    """Join a folder and a path, which may be absolute."""
    return Path(os.path.normpath(folder / path))


def read_fold(value: Any, *, key: str) -> int | None:
    """Read a validation fold, or None for a case without one.

    Raises:
        UsageError: the value is no whole number.
    """
    if value in (None, ""):
        return None
    text = str(value).removesuffix(".0")  # as spreadsheets write numbers of a column with empty cells
    is_whole = not isinstance(value, bool) and text.isascii() and text.isdecimal()
    require(is_whole, key, got=value, expected="a fold from 0 to 4", fix="number the folds from 0 on")
    return int(text)


def _find_path(folder: Path, value: Any, case_id: str, key: str) -> Path:
    got = "no path" if value in (None, "") else value
    is_path = isinstance(value, str) and value
    require_case(is_path, case_id, key, got=got, expected="a path", fix="write the path of the file")
    return join(folder, str(value))


def _find_text(given: Mapping[str, Any], names: Sequence[str], place: str) -> str:
    values = {name: given[name] for name in names if given.get(name) not in (None, "")}
    value = next(iter(values.values()), "")
    is_name = isinstance(value, str | int) and not isinstance(value, bool)
    require_case(is_name, place, names[0], got=value, expected="a text", fix="correct the entry")
    return str(value)
