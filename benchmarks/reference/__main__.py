"""Generate pages of ``docs/reference/`` from the code that they describe.

Run ``python -m benchmarks.reference`` to write the pages, with ``--check`` to report only whether they are up to date.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reference.columns import fill_columns
from benchmarks.reference.commands_page import make_commands_page
from benchmarks.reference.configuration_page import make_configuration_page
from benchmarks.result_file import ROOT
from uumamba.runtime.files import write_text

FOLDER = ROOT / "docs" / "reference"
FORMATS = "file_formats.md"
"""Page that is written by hand except for its tables of columns."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages, or check them; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reference", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page is out of date")
    options = parser.parse_args(arguments)
    problems = []
    for path, text in make_pages().items():
        if not options.check:
            write_text(path, text)
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            problems.append(f"{path} is out of date; run python -m benchmarks.reference")
    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


def make_pages() -> dict[Path, str]:
    """Return the text of every generated page."""
    return {
        FOLDER / "configuration.md": make_configuration_page(),
        FOLDER / "commands.md": make_commands_page(),
        FOLDER / FORMATS: fill_columns((FOLDER / FORMATS).read_text(encoding="utf-8")),
    }


if __name__ == "__main__":
    raise SystemExit(main())
