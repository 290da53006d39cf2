"""Generate the README's tables from the JSON under ``benchmarks/results/``.

Run ``python -m benchmarks.readme_tables`` to write the tables, with ``--check`` to report only whether they are up to
date. Long tables are on the page of results only; the README links to them.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.family_table import SOURCES, make_family_rows
from benchmarks.result_file import RESULTS, ROOT, find_changed_configs, read_result
from benchmarks.which_method import make_page
from uumamba.runtime.errors import require
from uumamba.runtime.files import write_text

PAGE = "README.md"  # in the folder of the results, so that GitHub shows it there
LONGEST = 16  # rows of a table in the README


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables, or check them; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a table is out of date")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    results = {path: read_result(path) for path in sorted(options.results.rglob("*.json"))}
    problems = [f"{path}: {name} has changed since; measure again" for path, name in _find_changed(results)]
    for path, text in make_pages(options.readme, options.results / PAGE, results).items():
        if not options.check:
            write_text(path, text)
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            problems.append(f"{path} is out of date; run python -m benchmarks.readme_tables")
    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


def make_pages(readme: Path, page: Path, results: Mapping[Path, Mapping[str, Any]]) -> dict[Path, str]:
    """Return the text of the README and of the generated pages."""
    text = readme.read_text(encoding="utf-8")
    if _make_markers("family")[0] in text:
        of_family = [result for path, result in results.items() if path.stem in SOURCES]
        text = fill_markers(text, "family", f"\n{format_table(list(make_family_rows(of_family)))}\n")
    text = fill_markers(text, "results", "\n".join(format_brief(path, result) for path, result in results.items()))
    head = "# Measurements\n\nWritten by `python -m benchmarks.readme_tables` from the files beside this page.\n"
    sections = "\n".join(format_section(path, result) for path, result in results.items())
    return {readme: text, page: head + sections} | make_page(results)


def fill_markers(text: str, name: str, content: str) -> str:
    """Replace the text between the two markers of a name."""
    begin, end = _make_markers(name)
    found = [mark for mark in re.findall("<!-- .*? -->", text) if mark in (begin, end)]
    expected, fix = f"{begin} and then {end}, once each", "correct the markers in the README"
    require(found == [begin, end], "README markers", got=" ".join(found), expected=expected, fix=fix)
    before, after = text[: text.index(begin)], text[text.index(end) :]
    return f"{before}{begin}\n{content}{after}"


def _make_markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def format_brief(path: Path, result: Mapping[str, Any]) -> str:
    """Return a result's section, or a link to its long table."""
    rows = len(result["rows"])
    if rows <= LONGEST:
        return format_section(path, result)
    title = str(result.get("title") or path.stem)
    return f"\n### {title}\n\n[{rows} rows on the page of results](benchmarks/results/{PAGE}#{make_anchor(title)}).\n\n"


def make_anchor(title: str) -> str:
    """Return a heading's name as the target of a link.

    Example:
        >>> make_anchor("What methods claim, on digits")
        'what-methods-claim-on-digits'
    """
    return "".join(mark for mark in title.lower().replace(" ", "-") if mark.isalnum() or mark in "-_")


def format_section(path: Path, result: Mapping[str, Any]) -> str:
    """Return a result as heading, description, table and origin."""
    inside = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    about = f"{result['about']}\n\n" if result.get("about") else ""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    commit = f"; commit {result['commit']}" if result.get("commit") else ""
    origin = f"Measured on {result['machine']}; {versions}{commit}. Source: `{inside}`."
    return f"\n### {result.get('title') or path.stem}\n\n{about}{format_table(result['rows'])}\n{origin}\n\n"


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table."""
    head = [str(key).replace("_", " ") for key in rows[0]]
    marks = ["--:" if all(_is_number(row[key]) for row in rows) else "---" for key in rows[0]]
    body = [[format_cell(value) for value in row.values()] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, marks, *body))


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
    return str(value).replace("|", "\\|")


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _find_changed(results: Mapping[Path, Mapping[str, Any]]) -> list[tuple[Path, str]]:
    return [(path, name) for path, result in results.items() for name in find_changed_configs(result)]


if __name__ == "__main__":
    raise SystemExit(main())
