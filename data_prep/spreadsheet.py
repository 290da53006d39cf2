"""Spreadsheet rows as text, from CSV or one sheet of a workbook."""

import csv
import warnings
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar
from xml.etree.ElementTree import ParseError
from zipfile import BadZipFile, ZipFile

from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.text_files import (
    MAX_SHEET_BYTES,
    MAX_SHEET_CELLS,
    MAX_UNPACKED_SHEET_BYTES,
    LimitError,
    read_limited,
)

Row = TypeVar("Row", bound=Sequence[Any])

_DAMAGED = (OSError, EOFError, LookupError, TypeError, ValueError, csv.Error, BadZipFile, ParseError)


def read_rows(path: Path, *, sheet: str) -> list[list[str]]:
    r"""Read the rows of a CSV file or of a workbook's sheet.

    An empty cell is an empty text; dates and formulas give their last value. A CSV file is UTF-8, separated by commas
    or semicolons (some Excel versions export semicolons).

    Args:
        path: ``.csv`` or ``.xlsx``.
        sheet: sheet of the workbook; ignored for a CSV file.

    Raises:
        UsageError: the file cannot be read, the workbook has no such sheet, or openpyxl is not installed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "split.csv"
        >>> _ = path.write_text("FileName,Split-1\n1,Training\n")
        >>> read_rows(path, sheet="v2-latest")
        [['FileName', 'Split-1'], ['1', 'Training']]
    """
    try:
        return _read_csv(path) if path.suffix.lower() == ".csv" else _read_workbook(path, sheet)
    except UsageError:
        raise
    except _DAMAGED as error:
        raise UsageError(
            str(path),
            got=f"{type(error).__name__}: {error}",
            expected="a CSV file or workbook",
            fix="restore the file from the download, or save it as CSV in UTF-8",
        ) from None


def _read_csv(path: Path) -> list[list[str]]:
    text = read_limited(path, most=MAX_SHEET_BYTES).decode("utf-8-sig")
    delimiter = ";" if text.count(";") > text.count(",") else ","
    return list(_limit_cells(csv.reader(text.splitlines(), delimiter=delimiter)))


def _limit_cells(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield rows up to the limit of cells.

    A workbook of 1 kB can announce 17 billion.
    """
    cells = 0
    for row in rows:
        cells += 1 + len(row)
        if cells > MAX_SHEET_CELLS:
            raise LimitError(f"more than {MAX_SHEET_CELLS} cells, of which many may be empty")
        yield row


def _read_workbook(path: Path, sheet: str) -> list[list[str]]:
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise UsageError(
            "openpyxl",
            got="not installed",
            expected=f"the reader of {path}",
            fix="run pip install 'uumamba[mnms]', or save the sheet as CSV",
        ) from None
    content = BytesIO(read_limited(path, most=MAX_SHEET_BYTES))
    with ZipFile(content) as parts:
        unpacked = sum(part.file_size for part in parts.infolist())
    if unpacked > MAX_UNPACKED_SHEET_BYTES:
        raise LimitError(f"{unpacked / 2**20:.0f} MiB when unpacked")
    with warnings.catch_warnings(action="ignore"):  # openpyxl drops some of Excel's formats
        book: Any = load_workbook(content, read_only=True, data_only=True)
        require(
            sheet in book.sheetnames,
            str(path),
            got=f"the sheets {', '.join(book.sheetnames)}",
            expected=f"a sheet {sheet}",
            fix="restore the file from the download",
        )
        rows = _limit_cells(book[sheet].values)
        return [["" if cell is None else str(cell) for cell in row] for row in rows]
