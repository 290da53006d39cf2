"""The official splits of ImageCAS: which case is for training, validation or test."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from data_prep.spreadsheet import read_rows
from uumamba.runtime.errors import UsageError

OfficialSplit = Literal["Split-1", "Split-2", "Split-3", "Split-4"]
SHEET = "v2-latest"
PARTITIONS = ("training", "validation", "test")

_SHEET_NAME = re.compile(r"imageCAS_data_split\.(csv|xlsx)", re.IGNORECASE)
_NUMBER = re.compile(r"(?P<number>\d{1,9})(\.0+)?(\.img\.nii\.gz)?")


def find_sheet(raw: Path, files: Iterable[Path]) -> Path:
    """The split sheet among the files of a raw folder: the uppermost one, and of two a CSV file.

    Raises:
        UsageError: there is none.
    """
    sheets = [path for path in files if _SHEET_NAME.fullmatch(path.name)]
    if not sheets:
        raise UsageError(
            f"No split sheet was found in {raw}; put imageCAS_data_split.xlsx of the Kaggle download there, or a CSV "
            "file of that name with the columns FileName and Split-1 (Training, Validation or Testing)."
        )
    return min(sheets, key=lambda path: (len(path.parts), path.suffix.lower(), path))


def read_partitions(sheet: Path, split: OfficialSplit) -> dict[int, str]:
    """What the split sheet says of each case: ``training``, ``validation``, ``test``, or another text as it stands.

    The row that names the columns may stand below a title, as in the official workbook; the first named column holds
    the case numbers.

    Raises:
        UsageError: the sheet cannot be read, has no such column, or lists no case, or one twice.
    """
    rows = [[cell.strip() for cell in row] for row in read_rows(sheet, sheet=SHEET)]
    heading = next((at for at, row in enumerate(rows) if split in row), None)
    if heading is None:
        raise UsageError(f"{sheet} has no column {split}; give the official sheet {SHEET}, or another split.")
    column = rows[heading].index(split)
    first = next(at for at, cell in enumerate(rows[heading]) if cell)
    partitions: dict[int, str] = {}
    for row in rows[heading + 1 :]:
        if len(row) > first and (match := _NUMBER.fullmatch(row[first])):
            number = int(match["number"])
            if number in partitions:
                raise UsageError(f"{sheet} lists the case {number} twice; delete one of the rows.")
            partitions[number] = _partition(row[column] if len(row) > column else "")
    if not partitions:
        raise UsageError(f"{sheet} lists no case below its column {rows[heading][first]}; restore it.")
    return partitions


def _partition(text: str) -> str:
    known = {"train": "training", "val": "validation", "test": "test"}
    return next((partition for start, partition in known.items() if text.lower().startswith(start)), text)
