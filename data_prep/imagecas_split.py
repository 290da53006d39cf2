"""Official splits of ImageCAS into training, validation and test cases."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from data_prep.spreadsheet import read_rows
from uumamba.runtime.errors import require

OfficialSplit = Literal["Split-1", "Split-2", "Split-3", "Split-4"]
SHEET = "v2-latest"
PARTITIONS = ("training", "validation", "test")

_SHEET_NAME = re.compile(r"imageCAS_data_split\.(csv|xlsx)", re.IGNORECASE)
_NUMBER = re.compile(r"(?P<number>\d{1,9})(\.0+)?(\.img\.nii\.gz)?")


def find_sheet(raw: Path, files: Iterable[Path]) -> Path:
    """Find the split sheet among the files of a raw folder: the uppermost one, and of two a CSV file.

    Raises:
        UsageError: there is none.
    """
    sheets = [path for path in files if _SHEET_NAME.fullmatch(path.name)]
    require(
        sheets,
        "split sheet",
        got=raw,
        expected="imageCAS_data_split.xlsx, or .csv with the columns FileName and Split-1, in the folder",
        fix="put the sheet of the Kaggle download there",
    )
    return min(sheets, key=lambda path: (len(path.parts), path.suffix.lower(), path))


def read_partitions(sheet: Path, split: OfficialSplit) -> dict[int, str]:
    """Read each case's partition: ``training``, ``validation``, ``test``, or another text unchanged.

    The row that names the columns may follow a title, as in the official workbook; the first named column holds the
    case numbers.

    Raises:
        UsageError: the sheet cannot be read, has no such column, or lists no case, or one twice.
    """
    rows = [[cell.strip() for cell in row] for row in read_rows(sheet, sheet=SHEET)]
    while rows and split not in rows[0]:
        rows.pop(0)
    require(rows, str(sheet), got=f"no column {split}", expected=f"the columns of the official sheet {SHEET}")
    heading, *rows = rows
    column = heading.index(split)
    first = next(at for at, cell in enumerate(heading) if cell)
    partitions: dict[int, str] = {}
    for row in rows:
        if len(row) > first and (match := _NUMBER.fullmatch(row[first])):
            number = int(match["number"])
            require(number not in partitions, str(sheet), got=f"case {number} twice", expected="one row for each case")
            partitions[number] = _partition(row[column] if len(row) > column else "")
    require(partitions, str(sheet), got="no case", expected=f"case numbers in the column {heading[first]}")
    return partitions


def _partition(text: str) -> str:
    known = {"train": "training", "val": "validation", "test": "test"}
    return next((partition for start, partition in known.items() if text.lower().startswith(start)), text)
