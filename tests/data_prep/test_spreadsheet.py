import zipfile

import pytest

from data_prep.spreadsheet import read_rows
from uumamba.runtime.errors import UsageError

ROWS = [["Official split"], ["FileName", "Split-1", "Split-2"], [1, "Training", "Testing"], [2, None, "Validation"]]
TEXTS = [["Official split"], ["FileName", "Split-1", "Split-2"], ["1", "Training", "Testing"], ["2", "", "Validation"]]


def test_a_workbook_gives_the_named_sheet_with_empty_cells_in_place(tmp_path, write_workbook):
    book = write_workbook(tmp_path / "a.xlsx", {"v1": [["old"]], "v2-latest": ROWS})

    assert read_rows(book, sheet="v2-latest") == TEXTS
    assert read_rows(book, sheet="v1") == [["old"]]


def test_a_workbook_whose_parts_are_named_from_its_root_is_read(tmp_path, write_workbook):
    book = write_workbook(tmp_path / "a.xlsx", {"only": [["x"]]})
    with zipfile.ZipFile(book) as stored:
        links = stored.read("xl/_rels/workbook.xml.rels").decode()
    replace_part(book, "xl/_rels/workbook.xml.rels", links.replace('"worksheets/', '"/xl/worksheets/'))

    assert read_rows(book, sheet="only") == [["x"]]


@pytest.mark.parametrize("delimiter", [",", ";"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_csv_file_with_commas_or_semicolons_gives_the_same_rows(tmp_path, delimiter, encoding):
    path = tmp_path / "a.csv"
    path.write_text("\r\n".join(delimiter.join(row) for row in TEXTS), encoding=encoding)

    assert read_rows(path, sheet="v2-latest") == TEXTS


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ('<c t="inlineStr"><is><t>Train</t></is></c>', "Train"),
        ('<c t="inlineStr"><is><r><t>Tra</t></r><r><t>in</t></r></is></c>', "Train"),
        ('<c t="str"><f>A1</f><v>Train</v></c>', "Train"),
        ("<c><v>3.5</v></c>", "3.5"),
        ("<c/>", ""),
    ],
)
def test_every_kind_of_cell_is_read_without_a_reference(tmp_path, write_workbook, cell, text):
    book = write_workbook(tmp_path / "a.xlsx", {"only": [["shared"]]})
    replace_part(book, "xl/worksheets/sheet1.xml", f"<worksheet><row>{cell}<c><v>7</v></c></row></worksheet>")

    assert read_rows(book, sheet="only") == [[text, "7"]]


def test_a_cell_far_to_the_right_stands_in_its_column(tmp_path, write_workbook):
    book = write_workbook(tmp_path / "a.xlsx", {"only": []})
    replace_part(book, "xl/worksheets/sheet1.xml", '<worksheet><row><c r="AB9"><v>1</v></c></row></worksheet>')

    (row,) = read_rows(book, sheet="only")

    assert row == [""] * 27 + ["1"]  # A to Z are 26 columns, AA the 27th


def test_a_sheet_that_is_not_there_names_those_that_are(tmp_path, write_workbook):
    book = write_workbook(tmp_path / "a.xlsx", {"v1": [], "v3": []})

    with pytest.raises(UsageError, match=r"a\.xlsx has no sheet v2-latest, only v1, v3; restore it"):
        read_rows(book, sheet="v2-latest")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("<worksheet><row>", "ParseError: no element found"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><worksheet/>', "ValueError: .* declares a document type"),
        ('<worksheet><row><c r="XFE1"/></row></worksheet>', "ValueError: the cell XFE1 lies beyond column 16384"),
        ('<worksheet><row><c t="s"><v>99</v></c></row></worksheet>', "IndexError"),
        (" " * (64 * 2**20 + 1), "ValueError: .* is larger than 64 MiB"),
    ],
)
def test_a_damaged_or_hostile_sheet_is_refused(tmp_path, write_workbook, content, reason):
    book = write_workbook(tmp_path / "a.xlsx", {"only": [["x"]]})
    replace_part(book, "xl/worksheets/sheet1.xml", content)

    with pytest.raises(
        UsageError, match=rf"a\.xlsx cannot be read \({reason}.*save its sheet only beside it as a\.csv"
    ):
        read_rows(book, sheet="only")


@pytest.mark.parametrize("name", ["a.xlsx", "a.csv"])
def test_a_file_of_noise_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\xff\xfe\x00noise")

    with pytest.raises(UsageError, match=rf"{name} cannot be read \((BadZipFile|UnicodeDecodeError): "):
        read_rows(tmp_path / name, sheet="v2-latest")


def test_a_cut_workbook_is_refused(tmp_path, write_workbook):
    book = write_workbook(tmp_path / "a.xlsx", {"only": [["x"]]})
    book.write_bytes(book.read_bytes()[:-30])

    with pytest.raises(UsageError, match=r"cannot be read \(BadZipFile: "):
        read_rows(book, sheet="only")


def replace_part(book, name, content):
    with zipfile.ZipFile(book) as old:
        parts = {entry: old.read(entry) for entry in old.namelist()}
    with zipfile.ZipFile(book, "w", zipfile.ZIP_DEFLATED) as new:
        for entry, part in (parts | {name: content}).items():
            new.writestr(entry, part)
