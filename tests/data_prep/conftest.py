"""Real ACDC where it is, and one phantom that the tests of this folder share."""

import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from data_prep import write_phantom

REAL_ACDC = Path(__file__).resolve().parents[3] / "shared" / "data" / "acdc"


@pytest.fixture(scope="session")
def real_acdc() -> Path:
    """The folder that holds the training patients of the real ACDC."""
    if not (REAL_ACDC / "training").is_dir():
        pytest.skip(f"real data: no ACDC patients at {REAL_ACDC}")
    return REAL_ACDC


@pytest.fixture
def write_workbook() -> Callable[..., Path]:
    """Write an Excel workbook as Excel lays one out: numbers in the sheets, texts once each in a shared table."""
    return _write_workbook


def _write_workbook(path: Path, sheets: dict[str, list[list[str | int | None]]]) -> Path:
    texts = sorted({cell for rows in sheets.values() for row in rows for cell in row if isinstance(cell, str)})
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    relations = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    listed = "".join(f'<sheet name="{name}" sheetId="{n}" r:id="rId{n}"/>' for n, name in enumerate(sheets, 1))
    links = "".join(f'<Relationship Id="rId{n}" Target="worksheets/sheet{n}.xml"/>' for n in range(1, len(sheets) + 1))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr(
            "xl/workbook.xml", f'<workbook xmlns="{main}" xmlns:r="{relations}"><sheets>{listed}</sheets></workbook>'
        )
        book.writestr(
            "xl/_rels/workbook.xml.rels",
            f'<Relationships xmlns="{relations.replace("officeDocument", "package")}">{links}</Relationships>',
        )
        items = "".join(f"<si><t>{escape(text)}</t></si>" for text in texts)
        book.writestr("xl/sharedStrings.xml", f'<sst xmlns="{main}">{items}</sst>')
        for number, rows in enumerate(sheets.values(), 1):
            body = "".join(_row_xml(at, row, texts) for at, row in enumerate(rows, 1))
            book.writestr(
                f"xl/worksheets/sheet{number}.xml",
                f'<worksheet xmlns="{main}"><sheetData>{body}</sheetData></worksheet>',
            )
    return path


def _row_xml(at: int, row: list[str | int | None], texts: list[str]) -> str:
    """Empty cells are left out, as Excel does."""
    cells = "".join(
        f'<c r="{chr(ord("A") + column)}{at}" t="s"><v>{texts.index(cell)}</v></c>'
        if isinstance(cell, str)
        else f'<c r="{chr(ord("A") + column)}{at}"><v>{cell}</v></c>'
        for column, cell in enumerate(row)
        if cell is not None
    )
    return f'<row r="{at}">{cells}</row>'


@pytest.fixture
def write_multipart_zip() -> Callable[..., list[Path]]:
    """Write the parts of a multipart archive: equal sizes, and the end record that Info-ZIP writes into the last."""
    return _write_multipart_zip


def _write_multipart_zip(folder: Path, name: str, *, parts: int = 4, last: str = "change2zip") -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.z{number:02d}" for number in range(1, parts + 1)]
    for path in paths:
        path.write_bytes(b"PK\x07\x08")
        os.truncate(path, 2**20)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", parts, parts, 1, 1, 46, 0, 0)
    paths.append(folder / f"{name}.{last}")
    paths[-1].write_bytes(bytes(500) + end)
    return paths


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty phantom patients, four of each diagnosis, and one test patient."""
    return write_phantom(tmp_path_factory.mktemp("phantom"), patients=20, test_patients=1)
