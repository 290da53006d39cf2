"""Layout of a CSV file with the paths of images and labels."""

import difflib
from collections.abc import Mapping
from pathlib import Path

from data_prep.folder.folder_options import KEY, FolderOptions
from data_prep.folder.listing import ONLY_CHANNEL, OPTIONAL_KEYS, Listing, make_case, read_fold
from data_prep.raw_folder import collect
from data_prep.spreadsheet import read_rows
from uumamba.data.case import Case, Split
from uumamba.data.warn import warn_repaired
from uumamba.runtime.errors import UsageError, require, require_case

COLUMNS = ("image", "label", "fold", "split", *(name for names in OPTIONAL_KEYS.values() for name in names))
_CHANNEL = "image_"
_SPLITS: Mapping[str, Split] = {"": "training", "train": "training", "training": "training", "test": "test"}


def list_table(raw: Path, options: FolderOptions) -> Listing:
    """List the rows of a CSV file, one a case.

    The columns are ``image``, or ``image_<channel>`` for each channel, and ``label``; optional are ``case``,
    ``patient``, ``fold``, ``domain``, ``phase``, ``group`` and ``split`` (``training`` or ``test``), in any order and
    case. The file is UTF-8, separated by commas or semicolons; paths are relative to it. Without ``case`` the file name
    of the image is the case id. Other columns are left out with a warning, but a name that is almost one of these is
    refused.

    Raises:
        UsageError: the file cannot be read, lacks a column, or has one twice, or a fold is no whole number.
    """
    file = find_table(raw, options)
    heading, *rows = read_rows(file, sheet="") or [[]]
    columns = {name.strip().lower(): name.strip() for name in heading}
    names = [name.strip().lower() for name in heading]
    channels = {name: columns[name][len(_CHANNEL) :] or ONLY_CHANNEL for name in _check_columns(names, file)}
    lines = [(number, row) for number, row in enumerate(rows, start=2) if any(cell.strip() for cell in row)]
    for number, row in lines:
        fix = "quote cells with commas, or correct the line"
        got, expected = f"{len(row)} cells", f"{len(names)}, as in the first line"
        require(len(row) <= len(names), f"{file}: line {number}", got=got, expected=expected, fix=fix)
    cases, failures = collect(lambda line: _make_row(file, names, channels, *line), lines)
    return Listing(cases, failures, tuple(channels.values()))


def find_table(raw: Path, options: FolderOptions) -> Path:
    """Find the CSV file of a folder.

    Raises:
        UsageError: there is none, or there are several.
    """
    if options.case_list is not None:
        return raw / options.case_list
    found = list_tables(raw)
    got, expected = " and ".join(path.name for path in found) or "none", "one CSV file with the columns image and label"
    require(len(found) == 1, str(raw), got=got, expected=expected, fix=f"set {KEY}.case_list to the file")
    return found[0]


def list_tables(folder: Path) -> list[Path]:
    """List the CSV files of a folder with a column for images."""
    return sorted(path for path in folder.glob("*.csv") if _has_images(path))


def _has_images(path: Path) -> bool:
    try:
        heading = next(iter(read_rows(path, sheet="")), [])
    except UsageError:
        return False
    return any(name.strip().lower() == "image" or name.strip().lower().startswith(_CHANNEL) for name in heading)


def _check_columns(names: list[str], file: Path) -> list[str]:
    """Check the columns; return those of images."""
    channels = [name for name in names if name.startswith(_CHANNEL)]
    if "image" in names:
        require(not channels, f"{file}: image", got=", ".join(channels), expected="no column image_<channel> as well")
        channels = ["image"]
    for name in ("image", "label"):
        found = channels if name == "image" else name in names
        got = f"the columns {', '.join(filter(None, names)) or 'none'}"
        require(
            found, f"{file}: {name}", got=got, expected=f"a column {name}", fix="name the columns in the first line"
        )
    fields = {alias: aliases[0] for aliases in OPTIONAL_KEYS.values() for alias in aliases}
    same = [fields.get(name, name) for name in names if name]
    twice = next((name for name in same if same.count(name) > 1), None)
    require(twice is None, f"{file}: {twice}", got="two columns of this name", expected="each column once")
    unused = [name for name in names if name and name not in COLUMNS and name not in channels]
    for name in unused:
        similar = difflib.get_close_matches(name, COLUMNS, n=1, cutoff=0.8)
        expected = f"the column {' or '.join(similar)}"
        require(not similar, f"{file}: {name}", got="an unknown column", expected=expected, fix="rename the column")
    if unused:
        warn_repaired(str(file), f"left out are the columns {', '.join(unused)}")
    return channels


def _make_row(file: Path, names: list[str], channels: Mapping[str, str], number: int, row: list[str]) -> Case:
    cells = {name: cell.strip() for name, cell in zip(names, row, strict=False) if name}
    place = f"line_{number}"
    split = cells.get("split", "").lower()
    fix = "write training or test, and validation cases as a fold in the column fold"
    require_case(split in _SPLITS, place, "split", got=split, expected="training or test", fix=fix)
    fold = read_fold(cells.get("fold"), key=f"{file}: line {number}: fold")
    is_test = _SPLITS[split] == "test"
    images = [cells.get(name, "") for name in channels]
    return make_case(
        file.parent, cells | {"image": images}, place=place, split=_SPLITS[split], fold=None if is_test else fold
    )
