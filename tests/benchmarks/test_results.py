"""Tests of result files and of the tables generated from them."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.family_table import WORDS, make_family_rows
from benchmarks.front_table import make_front_rows
from benchmarks.markdown import make_anchor
from benchmarks.marked_text import fill_markers
from benchmarks.readme_tables import main, make_pages
from benchmarks.result_file import RESULTS, find_changed_configs, read_result, write_result
from benchmarks.result_pages import THEMES, make_result_pages
from benchmarks.result_tables import format_cell, format_table


def test_a_result_names_no_folder_of_the_machine(repository: Path, tmp_path: Path) -> None:
    config = repository / "benchmarks" / "claims" / "hearts.yaml"
    write_result(tmp_path / "a.json", [{"seed": 1}], title="A", about="", configs=[(str(config), ())])
    assert str(repository) not in (tmp_path / "a.json").read_text(encoding="utf-8")


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


BEGIN, END = "<!-- front:begin -->", "<!-- front:end -->"
CLAIM = {"method": "SAM", "budget": "equal time", "verdict": "holds"}


@pytest.fixture
def generate(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Write results by file name; generate and return README and pages by name."""
    readme, results, docs = tmp_path / "README.md", tmp_path / "results", tmp_path / "docs"
    results.mkdir()
    docs.mkdir()
    readme.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    options = ["--readme", str(readme), "--results", str(results), "--docs", str(docs)]

    def run(title: str, **rows: list[dict[str, Any]]) -> dict[str, str]:
        for name, each in rows.items():
            result = {"title": title, "machine": "m", "versions": {"torch": "2"}, "rows": each}
            (results / f"{name}.json").write_text(json.dumps(result))
        assert main([*options, "--check"]) == 1
        assert main(options) == 0
        assert main([*options, "--check"]) == 0
        return {path.name: path.read_text(encoding="utf-8") for path in (readme, *docs.iterdir())}

    return run


def test_the_pages_hold_the_committed_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_a_changed_figure_fails_the_check_until_the_tables_are_written(generate: Any) -> None:
    for dice in (0.9, 0.8):
        rows = [{"network, optimizer": "a", "mean Dice": dice, "training minutes": 2.0}]
        pages = generate("Hearts", acdc_cpu=rows)
        head = "## Hearts\n\n| network, optimizer | mean Dice | training minutes |\n| --- | --: | --: |\n"
        assert f"{head}| a | {dice}00 | 2.00 |" in pages["segmentation.md"]
        assert f"| {dice}00 | 2.00 | not measured | not measured |" in pages["README.md"]
    assert pages["README.md"].startswith("before\n")
    assert pages["README.md"].endswith("after\n")


def test_a_readme_without_markers_stays_as_it_is(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("nothing generated\n")
    assert make_pages(readme, tmp_path, {})[readme] == "nothing generated\n"


def test_every_committed_result_is_whole_on_one_page(repository: Path) -> None:
    results = {path: read_result(path) for path in sorted(RESULTS.rglob("*.json"))}
    pages = make_result_pages(results, repository)
    for path, result in results.items():
        holding = [page for page, text in pages.items() if f"Source: `benchmarks/results/{path.name}`" in unwrap(text)]
        assert len(holding) == 1, path
        assert format_table(result["rows"]) in pages[holding[0]]
        link = f"({holding[0].name}#{make_anchor(result['title'])})"
        assert link in pages[repository / "index.md"]


def unwrap(text: str) -> str:
    return text.replace("\n", " ")


@pytest.mark.parametrize(
    ("name", "page"),
    [
        *((name, "federated_and_unlearning") for name in ("federated", "federated_arms", "unlearn_hearts")),
        *(("hearts_shift", "optimizers"), ("scan_cuda", "speed"), ("layer_cuda", "speed")),
    ],
)
def test_a_result_that_is_still_to_come_has_its_page(generate: Any, name: str, page: str) -> None:
    pages = generate("To come", **{name: [{"setting": "a", "value": 1.5}]})
    assert "## To come\n" in pages[f"{page}.md"]
    assert f"- [To come]({page}.md#to-come): 1 row.\n" in pages["index.md"]


def test_a_result_without_a_theme_is_refused(refused: Any) -> None:
    with refused("new.json", got="no page for the result"):
        make_result_pages({Path("new.json"): {"rows": [{"a": 1}]}}, Path())


def test_every_benchmark_of_a_theme_exists() -> None:
    named = {module for theme in THEMES for module in theme.sources.values()}
    assert [module for module in sorted(named) if find_spec(module) is None] == []


def test_the_front_table_says_what_was_not_measured() -> None:
    prediction = [
        {"name": name, "shape": "20 frames", "median_s": seconds}
        for name, seconds in (("uumamba, mirrored", 30.0), ("nnU-Net, mirrored", 90.0), ("uumamba, not mirrored", 6.0))
    ]
    rows = list(
        make_front_rows({"predict": {"machine": "m", "rows": prediction}}, "20 patients (ED and ES): mean Dice 0.9")
    )
    assert [(row["mean Dice"], row["minutes"], row["nnU-Net's minutes"]) for row in rows] == [
        (0.9, "not measured", "not measured"),
        ("-", 0.5, 1.5),
    ]
    assert rows[0]["nnU-Net's Dice"] == "not measured"
    assert [*make_front_rows({}, "")] == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.87349, "0.873"), (25.04, "25.0"), (998.6, "999"), (3601.7, "3602"), (0.0, "0.00"), (12, "12")),
        *((None, ""), (True, "yes"), ([0.1, 0.25], "0.100 to 0.250"), ("a|b", "a|b")),
    ],
)
def test_a_number_is_written_with_three_significant_digits(value: object, text: str) -> None:
    assert format_cell(value) == text
    assert format_table([{"net_name": "a|b", "n": 1}]) == "| net name | n |\n| --- | --: |\n| a\\|b | 1 |\n"


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_readme_without_its_two_markers_is_refused(text: str, refused: Any) -> None:
    with refused("markers"):
        fill_markers(text, "front", "tables")


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
    pages = generate("A", sharpness=[CLAIM], acdc_vendor_shift=[CLAIM])
    assert "| 1 / 0 / 0 |" in next(line for line in pages["optimizers.md"].splitlines() if line.startswith("| `SAM` |"))
    assert "1 comparisons: 1 holds, 0 not distinguishable, 0 does not hold here.\n" in pages["optimizers.md"]
