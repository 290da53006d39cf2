"""Results as sections of a page: heading, description, table and origin."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from benchmarks.claims.intervals import FAILS, HOLDS, UNDECIDED
from benchmarks.markdown import make_table
from benchmarks.result_file import ROOT

Result = Mapping[str, Any]
VERDICTS = (HOLDS, UNDECIDED, FAILS)


def format_section(path: Path, result: Result, *, module: str = "") -> str:
    """Return a result as heading, description, table and origin.

    Args:
        path: file of the result.
        result: its content.
        module: the benchmark that measured it.
    """
    parts = [f"## {find_title(path, result)}", wrap(str(result.get("about") or "")), count_verdicts(result["rows"])]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    commit = f"; commit {result['commit']}" if result.get("commit") else ""
    inside = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    protocol = f" Protocol: `{module.replace('.', '/')}.py`." if module else ""
    origin = wrap(f"Measured on {result['machine']}; {versions}{commit}. Source: `{inside}`.{protocol}")
    return "\n\n".join(filter(None, (*parts, format_table(result["rows"]).rstrip("\n"), origin))) + "\n"


def find_title(path: Path, result: Result) -> str:
    """Return the title of a result, or the name of its file."""
    return str(result.get("title") or path.stem)


def count_verdicts(rows: Sequence[Result]) -> str:
    """Count the verdicts of a table of claims; empty for another table.

    Example:
        >>> count_verdicts([{"verdict": HOLDS}, {"verdict": UNDECIDED}])
        '2 comparisons: 1 holds, 1 not distinguishable, 0 does not hold here.'
    """
    found = Counter(row["verdict"] for row in rows if "verdict" in row)
    words = ", ".join(f"{found[verdict]} {verdict}" for verdict in VERDICTS)
    return f"{found.total()} comparisons: {words}." if found else ""


def format_table(rows: Sequence[Result]) -> str:
    """Return rows as a Markdown table.

    The verdict follows the claim, where it is seen without scrolling to the right.
    """
    keys = [*rows[0]]
    if {"claim", "verdict"} <= {*keys}:
        keys.remove("verdict")
        keys.insert(keys.index("claim") + 1, "verdict")
    numbers = [all(_is_number(row[key]) for row in rows) for key in keys]
    head = [str(key).replace("_", " ") for key in keys]
    return make_table(head, [[format_cell(row[key]) for key in keys] for row in rows], numbers=numbers)


def format_cell(value: Any) -> str:
    """Format a table cell: fractions get three significant digits.

    Intervals are written as ``0.1 to 0.2``.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.3g}".removesuffix(".")
    if isinstance(value, list):
        return (" to " if len(value) == 2 else ", ").join(map(format_cell, value))
    return str(value)


def wrap(text: str) -> str:
    """Wrap a paragraph at 120 characters; words and paths stay whole."""
    return fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
