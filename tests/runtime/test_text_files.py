"""Tests of the limits of text files: refused with a typed error, before memory is taken."""

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
from pydantic import TypeAdapter

from data_prep.spreadsheet import read_rows
from uumamba.config import read_config
from uumamba.data.case import Manifest
from uumamba.data.stored_json import read_json
from uumamba.domain_generalization import read_slow_examples
from uumamba.evaluation import read_scores
from uumamba.nets.official_plans import read_plans
from uumamba.runtime.errors import LONGEST_QUOTE, UsageError
from uumamba.runtime.text_files import MAX_JSON_BYTES, MAX_SCORES_BYTES, MAX_SHEET_BYTES, MAX_YAML_BYTES
from uumamba.training.run_folder import RunLog

READERS: dict[str, Callable[[Path], object]] = {
    "manifest": Manifest.read,
    "stored": lambda path: read_json(
        path, TypeAdapter(dict[str, tuple[float]]), expected="numbers", fix="write it again"
    ),
    "slow examples": read_slow_examples,
    "plans": read_plans,
}
FOREIGN = {
    "deep": "[" * 100_000,
    "deep mapping": '{"a":' * 100_000,
    "a list": "[1, 2, 3]",
    "a number": "7",
    "wrong types": '{"training": 3, "slow": 3, "groups": 3, "format": 3, "configurations": 3}',
    "mixed": '{"format": "uumamba slow examples 1", "slow": ["a", 1], "groups": [3], "errors": {}, "size": "x"}',
    "long": '{"name": "' + "x" * 6_000_000 + '", "labels": "' + "y" * 100_000 + '"}',
    "no text": "\0\1\2",
    "nothing": "",
    "NaN": '{"name": NaN}',
}


@contextmanager
def little_is_taken() -> Iterator[None]:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "kilobytes"
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_foreign_json_is_a_typed_error_of_two_lines(read: Callable[[Path], object], text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    with little_is_taken(), pytest.raises(UsageError, match=r".* got ") as error:
        read(path)
    assert len(str(error.value)) < 5 * LONGEST_QUOTE
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_json_above_the_limit_is_refused_unread(read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as stream:
        stream.truncate(20 * MAX_JSON_BYTES)
    with little_is_taken(), pytest.raises(UsageError, match="more than 64 MiB"):
        read(path)


@pytest.mark.parametrize("kind", ["large", "pipe", "device", "folder"])
def test_scores_above_the_limit_or_in_no_regular_file_are_refused_unread(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    makers: dict[str, Callable[[], object]] = {
        "large": lambda: (path.touch(), os.truncate(path, 2 * MAX_SCORES_BYTES)),
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
    }
    makers[kind]()
    found = "more than 512 MiB" if kind == "large" else "not a regular file|Is a directory|a folder"
    with (
        little_is_taken(),
        pytest.raises(UsageError, match=rf"scores\.csv: got .*({found}), expected a table of scores"),
    ):
        read_scores(path)


def test_a_log_with_a_deep_row_ends_before_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 0}\n' + "[" * 100_000 + "\n", encoding="utf-8")
    assert RunLog(path).rows() == [{"epoch": 0}]


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "[" * 5000 + "]" * 5000,
        "a: " * 200,
        "a: &a [*a]",
        "- 1\n" * 200_000,
        "name: [" + "x, " * 300_000 + "]",
        f"name: {'x' * (MAX_YAML_BYTES // 2)}",
        " " * (MAX_YAML_BYTES + 1),
    ],
    ids=["bomb", "deep", "nested keys", "itself", "many", "wide", "long", "large"],
)
@pytest.mark.parametrize("as_override", [False, True])
def test_hostile_yaml_is_a_short_error(text: str, as_override: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    with little_is_taken(), pytest.raises(UsageError, match=r" got ") as error:
        read_config("demo", [f"name={text}"]) if as_override else read_config(path)
    assert len(str(error.value)) < 5 * LONGEST_QUOTE


def test_aliases_that_stand_for_few_values_are_read() -> None:
    config = read_config("demo", ["preprocess.spacing_mm=[null, &edge 2.5, *edge]"])
    assert config.as_json()["preprocess"]["spacing_mm"] == [None, 2.5, 2.5]


def write_sheet(path: Path, data: str, *, dimension: str | None) -> Path:
    """Write a workbook whose sheet ``v1`` has this XML."""
    from openpyxl import Workbook

    book = Workbook()
    book.active.title = "v1"
    book.save(path)
    with ZipFile(path) as stored:
        parts = {name: stored.read(name) for name in stored.namelist()}
    space = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    size = "" if dimension is None else f'<dimension ref="{dimension}"/>'
    sheet = f'<worksheet xmlns="{space}">{size}<sheetData>{data}</sheetData></worksheet>'
    parts["xl/worksheets/sheet1.xml"] = sheet.encode()
    with ZipFile(path, "w", ZIP_DEFLATED) as stored:
        for name, content in parts.items():
            stored.writestr(name, content)
    return path


LAST_CELL = '<row r="1"><c r="A1"><v>1</v></c></row><row r="1048576"><c r="XFD1048576"><v>1</v></c></row>'


@pytest.mark.parametrize(
    ("data", "dimension"),
    [
        (LAST_CELL, "A1:XFD1048576"),
        (LAST_CELL, None),
        (f'<row r="1"><c r="A1" t="str"><v>{"x" * 80_000_000}</v></c></row>', "A1"),
    ],
    ids=["last cell", "without dimension", "packed"],
)
def test_a_small_sheet_that_stands_for_gigabytes_is_refused(data: str, dimension: str, tmp_path: Path) -> None:
    path = write_sheet(tmp_path / "a.xlsx", data, dimension=dimension)
    with little_is_taken(), pytest.raises(UsageError, match=r"a\.xlsx: got LimitError: .*(cells|MiB)"):
        read_rows(path, sheet="v1")


@pytest.mark.parametrize("text", ["," * 2_000_000, "a\n" * 2_000_000, "x" * 200_000, " " * (MAX_SHEET_BYTES + 1)])
def test_a_csv_of_millions_of_cells_or_of_one_huge_cell_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with little_is_taken(), pytest.raises(UsageError, match=r"a\.csv: got (LimitError|Error): "):
        read_rows(tmp_path / "a.csv", sheet="")
