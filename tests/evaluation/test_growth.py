"""Reports and tables of many rows: the time is linear in their number."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import process_time

import pytest

from uumamba.evaluation import ScoreRow, read_scores, write_scores, write_summary
from uumamba.evaluation.html_report import render_report

Vary = Callable[[ScoreRow, int], ScoreRow]
VARIED: dict[str, Vary] = {
    "cases": lambda row, n: replace(row, case_id=f"c{n // 3}", patient_id=f"p{n // 6}", phase=("ED", "ES")[n // 3 % 2]),
    "patients": lambda row, n: replace(row, case_id=f"c{n}", patient_id=f"p{n}", phase="ED", structure="LV"),
    "domains": lambda row, n: replace(row, case_id=f"c{n}", patient_id=f"p{n}", domain=f"d{n}"),
    "groups": lambda row, n: replace(
        row, case_id=f"c{n}", patient_id=f"p{n}", phase="ED", structure="LV", group=f"g{n}"
    ),
    "phases": lambda row, n: replace(row, case_id=f"c{n}", phase=f"p{n}", structure="LV"),
    "structures": lambda row, n: replace(row, structure=f"s{n}", phase=None),
    "swapped sides": lambda row, n: replace(row, case_id=f"c{n}", partner="RV", partner_overlap_ml=1e3),
}


@pytest.mark.slow
@pytest.mark.parametrize("vary", VARIED.values(), ids=VARIED)
def test_four_times_the_rows_take_about_four_times_the_processor_time(
    vary: Vary, cohort: tuple[ScoreRow, ...], tmp_path: Path
) -> None:
    def seconds(number: int) -> float:
        rows = [vary(cohort[index % len(cohort)], index) for index in range(number)]
        start = process_time()
        write_scores(tmp_path / "scores.csv", rows)
        write_summary(tmp_path / "summary.json", rows)
        assert len(read_scores(tmp_path / "scores.csv")) == number
        page = render_report(rows, title="")
        assert len(page) < 5e6
        return process_time() - start

    seconds(100)  # what only the first call does
    fixed = min(seconds(100), seconds(100))  # plots
    short, long = 4_000, 16_000  # sixteen times if quadratic
    assert seconds(long) - fixed < 8 * max(0.3, min(seconds(short), seconds(short)) - fixed)
