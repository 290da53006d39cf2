"""Workbooks for the tests of this folder."""

from collections.abc import Callable
from pathlib import Path

import pytest
from openpyxl import Workbook


@pytest.fixture
def write_workbook() -> Callable[..., Path]:
    """Write an Excel workbook with some sheets of rows."""

    def write(path: Path, sheets: dict[str, list[list[str | float | None]]]) -> Path:
        book = Workbook()
        for name, rows in sheets.items():
            sheet = book.create_sheet(name)
            for row in rows:
                sheet.append(row)
        del book["Sheet"]
        book.save(path)
        return path

    return write
