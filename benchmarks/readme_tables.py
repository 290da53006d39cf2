"""Generate the pages of results and the README's table from ``benchmarks/results/``.

Run ``python -m benchmarks.readme_tables`` to write the tables, with ``--check`` to report only whether they are up to
date. The pages are ``docs/results/*.md``; the README has one table, between the markers ``front``.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.front_table import describe_front, make_front_rows, read_card
from benchmarks.marked_text import fill_markers, make_markers
from benchmarks.result_file import RESULTS, ROOT, find_changed_configs, read_result
from benchmarks.result_pages import make_result_pages
from benchmarks.result_tables import format_table
from benchmarks.which_method import make_page
from uumamba.runtime.files import write_text

DOCS = ROOT / "docs" / "results"
FRONT = "front"
"""Name of the README's markers."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables, or check them; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a table is out of date")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the pages")
    options = parser.parse_args(arguments)
    results = {path: read_result(path) for path in sorted(options.results.rglob("*.json"))}
    problems = [f"{path}: {name} has changed since; measure again" for path, name in _find_changed(results)]
    for path, text in make_pages(options.readme, options.docs, results).items():
        if not options.check:
            write_text(path, text)
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            problems.append(f"{path} is out of date; run python -m benchmarks.readme_tables")
    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


def make_pages(readme: Path, docs: Path, results: Mapping[Path, Mapping[str, Any]]) -> dict[Path, str]:
    """Return the text of the README and of the pages of results.

    Without markers the README stays as it is.
    """
    text = readme.read_text(encoding="utf-8")
    if any(marker in text for marker in make_markers(FRONT)):
        by_name = {path.stem: result for path, result in results.items()}
        table = format_table(list(make_front_rows(by_name, read_card())))
        text = fill_markers(text, FRONT, f"\n{table}\n{describe_front(by_name)}\n")
    by_method = {docs / path.name: page for path, page in make_page(results).items()}
    return {readme: text} | make_result_pages(results, docs) | by_method


def _find_changed(results: Mapping[Path, Mapping[str, Any]]) -> list[tuple[Path, str]]:
    return [(path, name) for path, result in results.items() for name in find_changed_configs(result)]


if __name__ == "__main__":
    raise SystemExit(main())
