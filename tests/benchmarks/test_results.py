"""Tests of result files and of the tables generated from them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.family_table import WORDS, make_family_rows
from benchmarks.readme_tables import LONGEST, fill_markers, format_cell, format_table, main
from benchmarks.result_file import find_changed_configs, read_result, write_result


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (lambda config: None, []),
        (lambda config: config.update(set=["optim.rho=0.2"]), ["demo optim.rho=0.2"]),
        (lambda config: config.update(set=["optim.radius=1"]), ["demo optim.radius=1"]),
        (lambda config: config["resolved"]["optim"].pop("rho"), []),  # as if rho had been added later
        (lambda config: config["resolved"]["optim"].update(radius=0.05), ["demo optim.rho=0.1"]),  # a removed key
        (lambda config: config["resolved"]["optim"]["base"].update(lr=0.5), ["demo optim.rho=0.1"]),
        (lambda config: config.pop("resolved"), []),  # the hash still matches
        (lambda config: (config.pop("resolved"), config.update(sha256="0")), ["demo optim.rho=0.1"]),
    ],
)
def test_a_changed_value_or_removed_key_of_a_configuration_is_found(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], changed: list[str]
) -> None:
    write_result(tmp_path / "a.json", [{"dice": 0.9}], title="A", configs=[("demo", ["optim.rho=0.1"])])
    result = read_result(tmp_path / "a.json")
    assert {"torch", "python"} <= result["versions"].keys()
    assert "cores" in result["machine"]
    change(result["configs"][0])
    assert find_changed_configs(result) == changed


@pytest.mark.parametrize(
    ("key", "value", "got"),
    [
        ("machine", None, "NoneType"),
        ("versions", [], "list"),
        ("rows", [], "0 rows"),
        ("rows", [{"a": 1}, {"b": 1}], "2 rows"),
        ("rows", [1], "1 rows"),
    ],
)
def test_a_result_of_another_schema_is_refused(tmp_path: Path, key: str, value: object, got: str, refused: Any) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"machine": "m", "versions": {}, "rows": [{"a": 1}]} | {key: value}))
    with refused(f"{path}: {key}", got=got):
        read_result(path)


BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


@pytest.fixture
def generate(tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """Write results by file name; generate and return README and page."""
    readme, results = tmp_path / "README.md", tmp_path / "results"
    results.mkdir()
    readme.write_text(f"before\n<!-- family:begin -->\n<!-- family:end -->\n{BEGIN}\n{END}\nafter\n")
    options = ["--readme", str(readme), "--results", str(results)]

    def run(title: str, **rows: list[dict[str, Any]]) -> tuple[str, str]:
        for name, each in rows.items():
            result = {"title": title, "machine": "m", "versions": {"torch": "2"}, "rows": each}
            (results / f"{name}.json").write_text(json.dumps(result))
        assert main([*options, "--check"]) == 1
        assert main(options) == 0
        assert main([*options, "--check"]) == 0
        return readme.read_text(encoding="utf-8"), (results / "README.md").read_text(encoding="utf-8")

    return run


def test_the_readme_holds_the_committed_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_a_changed_figure_fails_the_check_until_the_tables_are_written(generate: Any) -> None:
    for dice in (0.9, 0.8):
        readme, _ = generate("Hearts", a=[{"name": "a", "dice": dice}])
        assert f"### Hearts\n\n| name | dice |\n| --- | --: |\n| a | {dice}00 |\n" in readme
    assert readme.startswith("before\n")
    assert readme.endswith("after\n")


def test_a_long_table_is_on_the_page_of_results_and_linked_in_the_readme(generate: Any, tmp_path: Path) -> None:
    readme, page = generate("Scans, all", a=[{"name": f"row {n}", "dice": 0.5} for n in range(LONGEST + 1)])
    assert "row 3" not in readme
    assert f"[{LONGEST + 1} rows on the page of results](benchmarks/results/README.md#scans-all)" in readme
    assert "### Scans, all\n" in page
    assert f"| row {LONGEST} | 0.500 |" in page


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.87349, "0.873"), (25.04, "25.0"), (998.6, "999"), (3601.7, "3602"), (0.0, "0.00"), (12, "12")),
        *((None, ""), (True, "yes"), ([0.1, 0.25], "0.100 to 0.250"), ("a|b", "a\\|b")),
    ],
)
def test_a_number_is_written_with_three_significant_digits(value: object, text: str) -> None:
    assert format_cell(value) == text
    assert format_table([{"net_name": "a", "n": 1}]) == "| net name | n |\n| --- | --: |\n| a | 1 |\n"


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_readme_without_its_two_markers_is_refused(text: str, refused: Any) -> None:
    with refused("README markers"):
        fill_markers(text, "results", "tables")


def test_a_member_has_the_cost_of_its_first_form_and_the_claims_of_its_own_papers(generate: Any) -> None:
    steps = [("step, TRAM, previous", 2.3, 2.4), ("step, TRAM, fisher", 2.0, 1.9), ("step, SAM", 2.0, 1.97)]
    cost = {"rows": [{"name": name, "passes": passes, "ratio": ratio} for name, passes, ratio in steps]}
    found = [("TRAM, previous", "holds"), ("TRAM, fisher", "does not hold here"), ("SAM, norms alone", "holds")]
    claims = {"rows": [{"method": name, "budget": "equal time", "verdict": verdict} for name, verdict in found]}
    rows = dict(zip(WORDS, make_family_rows([cost, claims]), strict=True))
    tram, sam = rows["TRAM"], rows["SAM"]
    assert (tram["passes a step"], tram["time of a step"], tram["claims, equal time"]) == (2.3, 2.4, "1 / 0 / 1")
    assert (sam["passes a step"], sam["claims, equal time"], sam["claims, equal epochs"]) == (2.0, None, None)
    assert rows["SAM, norms alone"]["claims, equal time"] == "1 / 0 / 0"
    row = {"method": "SAM", "budget": "equal time", "verdict": "holds"}
    readme, _ = generate("A", sharpness=[row], acdc_vendor_shift=[row])
    assert "| 1 / 0 / 0 |" in next(line for line in readme.splitlines() if line.startswith("| `SAM` |"))
