r"""Claims of UDIM and USEFUL on scikit-learn's digits, in one table.

    python -m benchmarks.claims.domain_generalization --out runs/domain_generalization \
        --json benchmarks/results/domain_generalization.json

Each method has its own module with ``make_table(out, *, quick, workers)``, which returns rows, a description and the
measured commits. Runs stored in OUT are read, not run again.
"""

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.result_file import write_result
from benchmarks.scan import print_rows

METHODS = ("udim", "useful")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the missing runs of each method and write one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="gets a folder per method, with a JSON line per run")
    parser.add_argument("--json", type=Path, help="file for the table")
    parser.add_argument("--workers", type=int, default=2, help="number of processes, with one thread each")
    parser.add_argument("--quick", action="store_true", help="few seeds")
    parser.add_argument("--only", action="append", choices=METHODS, help="run only this method; repeatable")
    options = parser.parse_args(arguments)
    methods = options.only or METHODS
    rows, about, commits = join_tables(options.out, methods, quick=options.quick, workers=options.workers)
    print_rows(rows)
    if options.json is not None:
        title = "What UDIM and USEFUL claim, on digits"
        write_result(options.json, rows, title=title, about=about, measured_at=", ".join(sorted(commits)))


def join_tables(
    out: Path, methods: Sequence[str], *, quick: bool, workers: int
) -> tuple[list[dict[str, Any]], str, set[str]]:
    """Join the rows, descriptions and commits of all methods."""
    rows: list[dict[str, Any]] = []
    sentences: list[str] = []
    commits: set[str] = set()
    for name in methods:
        own_rows, about, own_commits = import_module(f"benchmarks.claims.{name}").make_table(
            out / name, quick=quick, workers=workers
        )
        rows.extend(own_rows)
        sentences.append(f"{name.upper()}: {about}")
        commits |= own_commits
    return rows, " ".join(sentences), commits


if __name__ == "__main__":
    main()
