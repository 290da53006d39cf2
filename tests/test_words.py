"""Words that a reader meets first: opening lines of docstrings, and terms that only this project would understand."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ("uumamba", "data_prep", "benchmarks")
LONGEST_FIRST_LINE = 12  # words
OPENINGS = re.compile(r"(What|Whether|Those|As|Nor|If|So|It|They|True if|Return if|Tell)\b")
METAPHORS = re.compile(
    r"\b(climb(s|ed|ing)?|unclimbed|torn|anew|reckon(s|ed)?|put up with|gone on with|beside|ours|likewise)\b",
    re.IGNORECASE,
)
"""Words that stood for a term of the field: ascent step, incomplete, again, compute, allow, resumed, next to."""


def docstrings(file: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield getattr(node, "lineno", 1), text


def complaints(file: Path, *, metaphors: bool = True) -> Iterator[str]:
    for line, text in docstrings(file):
        first = " ".join(text.split("\n\n")[0].split())
        if len(first.split()) > LONGEST_FIRST_LINE:
            yield f"{file}:{line}: more than {LONGEST_FIRST_LINE} words: {first}"
        if OPENINGS.match(first):
            yield f"{file}:{line}: neither a noun nor a verb opens: {first}"
        paragraphs = Counter(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
        for paragraph in (paragraph for paragraph, count in paragraphs.items() if count > 1):
            yield f"{file}:{line}: a paragraph twice: {paragraph}"
    if not metaphors:  # published tables of benchmarks have rows that are named so
        return
    for line, text in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        for found in METAPHORS.finditer(text):
            yield f"{file}:{line}: no term of the field: {found[0]}"


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_open_with_a_short_line_and_hold_no_private_metaphors(repository: Path, package: str) -> None:
    files = sorted((repository / package).rglob("*.py"))
    found = [each for file in files for each in complaints(file, metaphors=package != "benchmarks")]
    assert found == []


def test_a_long_opening_a_clause_and_a_metaphor_are_found(tmp_path: Path) -> None:
    long = "One two three four five six seven eight nine ten eleven twelve thirteen."
    (tmp_path / "planted.py").write_text(f'"""{long}"""\ndef f():\n    """Whether f climbs."""\n')
    found = list(complaints(tmp_path / "planted.py"))
    assert [each.split(": ")[1] for each in found] == [
        "more than 12 words",
        "neither a noun nor a verb opens",
        "no term of the field",
    ]


def test_a_repeated_paragraph_is_found(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text('def f():\n    """Run.\n\n    Twice\n    here.\n\n    Twice here.\n    """\n')
    found = list(complaints(tmp_path / "planted.py"))
    assert [each.split(": ")[1:] for each in found] == [["a paragraph twice", "Twice here."]]
