"""Fill the README's results section from the JSON under ``benchmarks/results/``, so that no figure is typed.

Run ``python -m benchmarks.readme_tables`` to write it, with ``--check`` only to say whether it is up to date.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.result_file import RESULTS, ROOT, changed_configs, read_result
from uumamba.files import write_text

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the section, or check it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when the section is out of date")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    results = {path: read_result(path) for path in sorted(options.results.rglob("*.json"))}
    text = options.readme.read_text(encoding="utf-8")
    filled = fill(text, "\n".join(section(path, result) for path, result in results.items()))
    problems = [f"{path}: {name} has changed since; measure again" for path, name in _changed(results)]
    if not options.check:
        write_text(options.readme, filled)
    elif filled != text:
        problems.append(f"{options.readme} is out of date; run python -m benchmarks.readme_tables")
    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


def fill(text: str, sections: str) -> str:
    """Put the sections between the two markers, each of which must stand once."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the README must hold {BEGIN} and, after it, {END}, once each")
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    return f"{before}{BEGIN}\n{sections}{after}"


def section(path: Path, result: Mapping[str, Any]) -> str:
    """Heading, what was measured, table, and where the numbers come from."""
    inside = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    about = f"{result['about']}\n\n" if result.get("about") else ""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    commit = f"; commit {result['commit']}" if result.get("commit") else ""
    origin = f"Measured on {result['machine']}; {versions}{commit}. Source: `{inside}`."
    return f"\n### {result.get('title') or path.stem}\n\n{about}{table(result['rows'])}\n{origin}\n\n"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table: a row each, a column a key."""
    head = [str(key).replace("_", " ") for key in rows[0]]
    marks = ["--:" if all(_is_number(row[key]) for row in rows) else "---" for key in rows[0]]
    body = [[cell(value) for value in row.values()] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, marks, *body))


def cell(value: Any) -> str:
    """A value as text: fractions with three significant digits, intervals as ``0.1 to 0.2``."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.3g}".removesuffix(".")
    if isinstance(value, list):
        return (" to " if len(value) == 2 else ", ").join(map(cell, value))
    return str(value).replace("|", "\\|")


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _changed(results: Mapping[Path, Mapping[str, Any]]) -> list[tuple[Path, str]]:
    return [(path, name) for path, result in results.items() for name in changed_configs(result)]


if __name__ == "__main__":
    raise SystemExit(main())
