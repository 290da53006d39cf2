"""A sheet of a spreadsheet as rows of text: CSV, or an Excel workbook (.xlsx) read with the standard library alone."""

import csv
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from uumamba.runtime.errors import UsageError

_MAX_PART_BYTES = 64 * 2**20
_MAX_COLUMNS = 16_384  # Excel's own limit
_RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
_DAMAGED = (
    OSError, EOFError, KeyError, IndexError, ValueError, RuntimeError, csv.Error,
    ElementTree.ParseError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_rows(path: Path, *, sheet: str) -> list[list[str]]:
    r"""Read the rows of a CSV file, or of one sheet of an Excel workbook, as text.

    Numbers keep the text that is stored, dates and formulas their last value. A cell that is not there is empty, a
    row may be shorter than others. A CSV file is UTF-8, separated by commas or, as some Excels export it, semicolons.

    Args:
        path: ``.csv`` or ``.xlsx``.
        sheet: the workbook's sheet; a CSV file has only one.

    Raises:
        UsageError: the file cannot be read, or the workbook has no such sheet.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "split.csv"
        >>> _ = path.write_text("FileName,Split-1\n1,Training\n")
        >>> read_rows(path, sheet="v2-latest")
        [['FileName', 'Split-1'], ['1', 'Training']]
    """
    try:
        return _csv_rows(path) if path.suffix.lower() == ".csv" else _xlsx_rows(path, sheet)
    except UsageError:
        raise
    except _DAMAGED as error:
        is_csv = path.suffix.lower() == ".csv"
        cure = "it as CSV UTF-8" if is_csv else f"its sheet {sheet} beside it as {path.stem}.csv"
        raise UsageError(
            f"{path} cannot be read ({type(error).__name__}: {error}); restore it from the download, or save {cure}."
        ) from None


def _csv_rows(path: Path) -> list[list[str]]:
    text = path.read_text(encoding="utf-8-sig")
    delimiter = ";" if text.count(";") > text.count(",") else ","
    return list(csv.reader(text.splitlines(), delimiter=delimiter))


def _xlsx_rows(path: Path, sheet: str) -> list[list[str]]:
    with zipfile.ZipFile(path) as book:
        parts = _sheet_parts(book)
        if sheet not in parts:
            raise UsageError(f"{path} has no sheet {sheet}, only {', '.join(parts)}; restore it from the download.")
        shared = _shared_strings(book)
        return [_row_texts(row, shared) for row in _part(book, parts[sheet]).iterfind(".//{*}row")]


def _sheet_parts(book: zipfile.ZipFile) -> dict[str, str]:
    """The file inside the workbook that holds each named sheet."""
    targets = {link.attrib["Id"]: link.attrib["Target"] for link in _part(book, "xl/_rels/workbook.xml.rels")}
    named = {
        sheet.attrib["name"]: targets[sheet.attrib[_RELATION]]
        for sheet in _part(book, "xl/workbook.xml").iterfind(".//{*}sheet")
    }
    return {name: target[1:] if target.startswith("/") else f"xl/{target}" for name, target in named.items()}


def _shared_strings(book: zipfile.ZipFile) -> list[str]:
    if "xl/sharedStrings.xml" not in book.namelist():
        return []
    return ["".join(_texts(item)) for item in _part(book, "xl/sharedStrings.xml").iterfind("{*}si")]


def _row_texts(row: ElementTree.Element, shared: list[str]) -> list[str]:
    texts: list[str] = []
    for cell in row.iterfind("{*}c"):
        column = _column(cell.get("r", ""), default=len(texts))
        texts += [""] * (column + 1 - len(texts))
        texts[column] = _cell_text(cell, shared)
    return texts


def _column(reference: str, *, default: int) -> int:
    """The index of a cell's column: 0 for ``A7``, 27 for ``AB1``; cells without a reference follow one another."""
    letters = re.match(r"[A-Z]*", reference)
    column = -1
    for letter in letters.group() if letters else "":
        column = 26 * (column + 1) + ord(letter) - ord("A")
    column = default if column < 0 else column
    if column >= _MAX_COLUMNS:
        raise ValueError(f"the cell {reference} lies beyond column {_MAX_COLUMNS}")
    return column


def _cell_text(cell: ElementTree.Element, shared: list[str]) -> str:
    if cell.get("t") == "inlineStr":
        return "".join(_texts(cell))
    value = cell.findtext("{*}v", "")
    return shared[int(value)] if cell.get("t") == "s" else value


def _texts(element: ElementTree.Element) -> Iterator[str]:
    return (text.text or "" for text in element.iterfind(".//{*}t"))


def _part(book: zipfile.ZipFile, name: str) -> ElementTree.Element:
    """One XML file of the workbook, of bounded size and without a document type, which could expand without end."""
    with book.open(name) as stream:
        content = stream.read(_MAX_PART_BYTES + 1)
    if len(content) > _MAX_PART_BYTES:
        raise ValueError(f"{name} is larger than {_MAX_PART_BYTES // 2**20} MiB")
    if b"<!DOCTYPE" in content:
        raise ValueError(f"{name} declares a document type")
    return ElementTree.fromstring(content)
