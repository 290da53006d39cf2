"""Page ``docs/results/which_method.md``: what the methods changed on hearts, in words.

:mod:`benchmarks.readme_tables` writes the page from ``hearts.json``.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.claims.intervals import FAILS, HOLDS, UNDECIDED
from benchmarks.result_file import ROOT

SOURCE = "hearts"
PAGE = ROOT / "docs" / "results" / "which_method.md"
WORDS = {HOLDS: "better", FAILS: "worse", UNDECIDED: "no difference shown"}
HEAD = """# Which method, when

Written by `python -m benchmarks.readme_tables` from `benchmarks/results/hearts.json`; protocol and commands are in
`benchmarks/claims/hearts.py`. Each line compares a method with its control on the 20 test patients of ACDC, after a
long training; the first section says whether it has converged. Differences are in Dice points (0.01), with 95 %
intervals over patients. The verdict of all lines but the first section's follows from p-values adjusted by Holm's
method, so an interval without 0 may still show no difference.
"""

Row = Mapping[str, Any]


def make_page(results: Mapping[Path, Mapping[str, Any]]) -> dict[Path, str]:
    """Return the page's path and text; nothing if hearts were not measured."""
    rows = [row for path, result in results.items() if path.stem == SOURCE for row in result["rows"]]
    return {PAGE: HEAD + "".join(_make_sections(rows))} if rows else {}


def _make_sections(rows: Sequence[Row]) -> Iterator[str]:
    first = [row for row in rows if row["p_holm"] is None]
    others = [row for row in rows if row["p_holm"] is not None]
    yield _make_section("Plateau and primary contrast", map(describe_row, first))
    for verdict, title in ((HOLDS, "Better than the control"), (FAILS, "Worse than the control")):
        found = [describe_row(row) for row in others if row["verdict"] == verdict]
        yield _make_section(title, found or ["none of the comparisons so far"])
    undecided = [row for row in others if row["verdict"] == UNDECIDED]
    yield _make_section("No difference shown", [describe_row(row) for row in undecided] or ["none"])


def _make_section(title: str, lines: Any) -> str:
    return f"\n## {title}\n\n" + "".join(f"- {line}\n" for line in lines)


def describe_row(row: Row) -> str:
    """Describe a row in one sentence.

    Example:
        >>> row = {"method": "SAM", "control": "plain", "metric": "40 patients: Dice", "budget": "equal time"}
        >>> describe_row(row | {"difference": -0.012, "interval": [-0.02, -0.004], "verdict": FAILS})
        '**SAM** against plain at equal time (40 patients: Dice): 1.2 points lower (-2.0 to -0.4), worse'
    """
    difference, (low, high) = 100 * row["difference"], (100 * end for end in row["interval"])
    size = f"{abs(difference):.1f} points {'higher' if difference > 0 else 'lower'} ({low:.1f} to {high:.1f})"
    head = f"**{row['method']}** against {row['control']} at {row['budget']} ({row['metric']})"
    verdict = WORDS[row["verdict"]] if str(row.get("claim", "higher")).startswith("higher") else row["verdict"]
    claim = "" if verdict in WORDS.values() else f"{row['claim']}: "
    return f"{head}: {size}, {claim}{verdict}"
