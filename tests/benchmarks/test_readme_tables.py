"""The README's figures come from the committed results, and a stale table is found."""

import json
from pathlib import Path

import pytest

from benchmarks.family_table import WORDS, family_rows
from benchmarks.readme_tables import LONGEST, cell, fill, main, table

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def test_the_readme_holds_what_the_committed_results_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_a_changed_figure_makes_the_check_fail_until_the_tables_are_written(tmp_path: Path) -> None:
    readme, results = tmp_path / "README.md", tmp_path / "results"
    options = ["--readme", str(readme), "--results", str(results)]
    results.mkdir()
    readme.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    for dice in (0.9, 0.8):
        result = {"title": "Hearts", "machine": "m", "versions": {"torch": "2"}, "rows": [{"name": "a", "dice": dice}]}
        (results / "a.json").write_text(json.dumps(result))
        assert main([*options, "--check"]) == 1
        assert main(options) == 0
        assert main([*options, "--check"]) == 0
        assert f"### Hearts\n\n| name | dice |\n| --- | --: |\n| a | {dice}00 |\n" in readme.read_text(encoding="utf-8")
    assert readme.read_text(encoding="utf-8").startswith("before\n")
    assert readme.read_text(encoding="utf-8").endswith("after\n")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.87349, "0.873"),
        (25.04, "25.0"),
        (998.6, "999"),
        (3601.7, "3602"),
        (0.0, "0.00"),
        (12, "12"),
        (None, ""),
        (True, "yes"),
        ([0.1, 0.25], "0.100 to 0.250"),
        ("a|b", "a\\|b"),
    ],
)
def test_a_value_is_written_with_three_significant_digits(value: object, text: str) -> None:
    assert cell(value) == text


def test_a_column_of_words_is_left_and_one_of_numbers_right() -> None:
    assert table([{"net_name": "a", "n": 1}]) == "| net name | n |\n| --- | --: |\n| a | 1 |\n"


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_readme_without_its_two_markers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        fill(text, "results", "tables")


def test_a_long_table_stands_on_the_page_of_results_and_the_readme_says_where(tmp_path: Path) -> None:
    readme, results = tmp_path / "README.md", tmp_path / "results"
    results.mkdir()
    readme.write_text(f"{BEGIN}\n{END}\n")
    rows = [{"name": f"row {n}", "dice": 0.5} for n in range(LONGEST + 1)]
    result = {"title": "Scans, all", "machine": "m", "versions": {"torch": "2"}, "rows": rows}
    (results / "a.json").write_text(json.dumps(result))
    options = ["--readme", str(readme), "--results", str(results)]
    assert main(options) == 0
    assert "row 3" not in readme.read_text(encoding="utf-8")
    assert f"[{len(rows)} rows on the page of results](benchmarks/results/README.md#scans-all)" in readme.read_text()
    page = results / "README.md"
    assert "### Scans, all\n" in page.read_text()
    assert f"| row {LONGEST} | 0.500 |" in page.read_text()
    page.write_text("typed")
    assert main([*options, "--check"]) == 1


def test_a_member_has_the_cost_of_its_first_form_and_the_claims_of_all() -> None:
    steps = [("step, TRAM, previous", 2.3, 2.4), ("step, TRAM, fisher", 2.0, 1.9), ("step, SAM", 2.0, 1.97)]
    cost = {"rows": [{"name": name, "passes": passes, "ratio": ratio} for name, passes, ratio in steps]}
    found = [("TRAM, previous", "holds"), ("TRAM, fisher", "does not hold here"), ("SAM, norms alone", "holds")]
    claims = {"rows": [{"method": name, "budget": "equal time", "verdict": verdict} for name, verdict in found]}
    rows = dict(zip(WORDS, family_rows([cost, claims]), strict=True))
    tram, sam = rows["TRAM"], rows["SAM"]
    assert (tram["passes a step"], tram["time of a step"], tram["claims, equal time"]) == (2.3, 2.4, "1 / 0 / 1")
    assert (sam["passes a step"], sam["claims, equal time"], sam["claims, equal epochs"]) == (2.0, None, None)
    assert rows["SAM, norms alone"]["claims, equal time"] == "1 / 0 / 0"


def test_rows_of_other_results_are_no_claims_of_a_member(tmp_path: Path) -> None:
    readme, results = tmp_path / "README.md", tmp_path / "results"
    results.mkdir()
    readme.write_text(f"<!-- family:begin -->\n<!-- family:end -->\n{BEGIN}\n{END}\n")
    row = {"method": "SAM", "budget": "equal time", "verdict": "holds"}
    for name in ("sharpness", "acdc_vendor_shift"):
        result = {"title": name, "machine": "m", "versions": {"torch": "2"}, "rows": [row]}
        (results / f"{name}.json").write_text(json.dumps(result))
    assert main(["--readme", str(readme), "--results", str(results)]) == 0
    line = next(line for line in readme.read_text(encoding="utf-8").splitlines() if line.startswith("| `SAM` |"))
    assert "| 1 / 0 / 0 |" in line
