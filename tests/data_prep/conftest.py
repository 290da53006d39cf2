"""A phantom and workbooks that the tests of this folder share."""

from collections.abc import Callable
from pathlib import Path

import pytest
from openpyxl import Workbook

from data_prep import write_phantom


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


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty phantom patients, four of each diagnosis, and one test patient."""
    return write_phantom(tmp_path_factory.mktemp("phantom"), patients=20, test_patients=1)
