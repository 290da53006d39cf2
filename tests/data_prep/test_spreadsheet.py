import sys

import pytest

from data_prep.spreadsheet import read_rows
from tests.data_prep.raw_layouts import write_workbook

ROWS = [["Official split", None, None], ["FileName", "Split-1", "Split-2"], [1, "Training", None], [2.5, None, "Test"]]
TEXTS = [["Official split", "", ""], ["FileName", "Split-1", "Split-2"], ["1", "Training", ""], ["2.5", "", "Test"]]


def test_a_workbook_gives_the_named_sheet_with_empty_cells_in_place(tmp_path, refused):
    book = write_workbook(tmp_path / "a.xlsx", {"v1": [["old"]], "v2-latest": ROWS})

    assert read_rows(book, sheet="v2-latest") == TEXTS
    assert read_rows(book, sheet="v1") == [["old"]]
    with refused(str(book), got="the sheets Sheet, v1, v2-latest"):
        read_rows(book, sheet="v3")


@pytest.mark.parametrize("delimiter", [",", ";"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_csv_file_with_commas_or_semicolons_gives_the_same_rows(tmp_path, delimiter, encoding, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)  # CSV needs nothing
    path = tmp_path / "a.csv"
    path.write_text("\r\n".join(delimiter.join(row) for row in TEXTS), encoding=encoding)

    assert read_rows(path, sheet="v2-latest") == TEXTS


def test_without_openpyxl_a_workbook_is_refused_with_the_command_that_installs_it(tmp_path, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with refused("openpyxl", got="not installed") as error:
        read_rows(tmp_path / "a.xlsx", sheet="v1")
    assert "pip install 'uumamba[mnms]'" in error.value.fix


@pytest.mark.parametrize("name", ["noise.xlsx", "noise.csv", "absent.xlsx", "cut.xlsx"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, refused, name):
    (tmp_path / "noise.xlsx").write_bytes(b"\xff\xfe\x00noise")
    (tmp_path / "noise.csv").write_bytes(b"\xff\xfe\x00noise")
    whole = write_workbook(tmp_path / "whole.xlsx", {"only": ROWS}).read_bytes()
    (tmp_path / "cut.xlsx").write_bytes(whole[:-30])

    with refused(str(tmp_path / name)):
        read_rows(tmp_path / name, sheet="only")
