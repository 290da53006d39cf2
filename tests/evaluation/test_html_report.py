import base64
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from uumamba.evaluation import EvaluationPair, ScoreRow, Scores, evaluate, summarise
from uumamba.evaluation.html_report import Overlay, render_report
from uumamba.evaluation.means import case_dice
from uumamba.evaluation.overlays import OverlayCase

VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Text and tags of a page with all tags closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def attributes(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]

    @property
    def ids(self) -> set[str | None]:
        return {attributes.get("id") for _, attributes in self.tags}


@pytest.fixture(scope="session")
def overlay_case() -> OverlayCase:
    labels = np.zeros((16, 16, 3), np.uint8)
    labels[4:9, 4:9, 1:] = 3
    return OverlayCase("b_7", np.zeros(labels.shape, np.float32), labels, labels, np.eye(4), (1.0, 1.0, 8.0))


@pytest.fixture(scope="session")
def heart_report(cohort: tuple[ScoreRow, ...], overlay_case: OverlayCase, structures: dict[str, int]) -> str:
    return render_report(
        cohort,
        title="Phantom",
        structures=structures,
        overlays=[Overlay("best", overlay_case)],
        training={"fold 0": [{"epoch": 0, "loss": 1.5, "dice": 0.25, "seconds": 90.0}]},
        baselines={"mean-shape atlas": {"dice": 0.321, "RV": 0.111, "MYO": 0.222, "LV": 0.63}},
        failures=[{"case_id": "z_1", "key": "label", "got": "value 7", "expected": "0 to 3", "fix": "correct it"}],
        notes=["A closing note."],
    )


ZONES = {f"Zone{number}": number for number in range(1, 24)}


@pytest.fixture(scope="session")
def zones() -> Scores:
    """Three cases of 23 zones in a row.

    The last zone is missed in the second case. In the third case the last two are missed, and the first two are
    swapped.
    """
    label = np.repeat(np.arange(24, dtype=np.uint8), 6).reshape(24, 6, 1).repeat(4, axis=2)
    pairs = []
    for number, case_id in enumerate(("a", "b", "c")):
        prediction = np.where(label > 23 - number, 0, label).astype(np.uint8)
        if case_id == "c":
            prediction[1], prediction[2] = 2, 1
        pairs.append(EvaluationPair(case_id, case_id, prediction, label, (2.0, 1.0, 1.0)))
    return evaluate(pairs, structures=ZONES, vessel_structures=list(ZONES), mirror_pairs=[("Zone1", "Zone2")])


@pytest.fixture(scope="session")
def zone_report(zones: Scores) -> str:
    case = OverlayCase("c", np.zeros((9, 9, 9), np.float32), *[np.ones((9, 9, 9), np.uint8)] * 2, np.eye(4), (1.0,) * 3)
    return render_report(
        zones.rows,
        title="Aorta",
        trees=zones.trees,
        structures=ZONES,
        overlays=[Overlay("worst", case)],
        baselines={"mean-shape atlas": {"dice": 0.321} | dict.fromkeys(ZONES, 0.3)},
    )


@pytest.fixture
def _empty_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace plots, which take most of the time, by nothing."""
    for name in ("plot_dice", "plot_ejection_fraction", "plot_training"):
        monkeypatch.setattr(f"uumamba.evaluation.html_report.{name}", lambda *_, **__: b"")


@pytest.mark.parametrize(("report", "pictures"), [("heart_report", 5), ("zone_report", 3)])
def test_the_report_is_accessible_and_loads_nothing(report: str, pictures: int, request: pytest.FixtureRequest) -> None:
    html = request.getfixturevalue(report)
    page = Page(html)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]+", "", html))
    assert "default-src 'none'" in html
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base"}
    for attributes in page.attributes("img"):
        encoded = str(attributes["src"]).removeprefix("data:image/png;base64,")
        assert base64.b64decode(encoded, validate=True).startswith(b"\x89PNG")
    assert sum(bool(attributes["alt"]) for attributes in page.attributes("img")) == pictures
    assert {str(attributes["href"]) for attributes in page.attributes("a")} <= {f"#{name}" for name in page.ids}
    assert page.attributes("html") == [{"lang": "en"}]
    assert all("scope" in attributes for attributes in page.attributes("th"))
    assert len(page.attributes("table")) == len(page.attributes("caption")) > 0


def test_headline_and_table_recompute_from_the_rows(heart_report: str, cohort: tuple[ScoreRow, ...]) -> None:
    text, summary = Page(heart_report).text, summarise(cohort)
    assert f"foreground Dice {summary.foreground_dice:.3f} mean over RV, MYO, LV" in text
    for row in summary.structures:
        assert f"{row.structure} {row.phase} {row.dice.mean:.3f} ± {row.dice.sd:.3f} {row.hd95_mm.mean:.1f} ±" in text
    for case_id, dice in case_dice(cohort).items():
        assert re.search(rf"{case_id} E[DS] \w+ {dice:.3f} ", text)
    assert "6 cases of 3 patients. Missed entirely: 1; found where the label has none: 1." in text


@pytest.mark.parametrize(
    "shown",
    [
        "Best: b_7 , ES, group NOR. Mean Dice 1.000",
        "fold 0 1 1.500 0.250 1.5",
        "mean-shape atlas 0.321 0.111 0.222 0.630",
        "z_1 : label: got value 7, expected 0 to 3. Fix: correct it.",
        # Label EFs are 60, 50 and 20, predicted ones 50, 50 and 100 * 9 / 99: mean difference (-10 + 0 - 10.9) / 3.
        "LV EF, % −7.0",
        "A closing note.",
    ],
)
def test_the_report_shows_each_given_part(heart_report: str, shown: str) -> None:
    assert shown in Page(heart_report).text


@pytest.mark.usefixtures("_empty_plots")
def test_the_report_leaves_missing_parts_out(
    make_pair: Callable[..., EvaluationPair], structures: dict[str, int]
) -> None:
    rows = evaluate([make_pair("a", {"LV": 5, "RV": 2}, {"LV": 5})], structures=structures).rows
    page = Page(render_report(rows, title="Only scores"))
    assert "The clinical table is left out because the phases (ED, ES) are unknown" in page.text
    assert not page.ids & {"training", "baselines", "cases", "failures"}


@pytest.mark.usefixtures("_empty_plots")
def test_undefined_and_infinite_numbers_are_signs(heart_report: str, cohort: tuple[ScoreRow, ...]) -> None:
    absent = [replace(row, dice=float("nan")) if row.case_id == "a_1" else row for row in cohort]
    text = Page(render_report(absent, title="x")).text
    assert "a_1 ED NOR – – – –" in text
    assert "∞" in Page(heart_report).text
    assert not re.search(r"\b(nan|inf|None)\b", text)


@pytest.mark.usefixtures("_empty_plots")
def test_the_report_escapes_all_names_and_texts(cohort: tuple[ScoreRow, ...], overlay_case: OverlayCase) -> None:
    evil = "<script>alert('x')</script>\"&"
    rows = [
        replace(row, case_id=evil + row.case_id, group=evil, structure=evil if row.structure == "RV" else row.structure)
        for row in cohort
    ]
    html = render_report(
        rows,
        title=evil,
        structures={evil: 1},
        overlays=[Overlay("worst", replace(overlay_case, case_id=evil + "b_7"))],
        training={evil: [{"epoch": 0, "loss": 1.0}]},
        baselines={evil: {"dice": 0.1}},
        failures=[dict.fromkeys(("case_id", "key", "got", "expected", "fix"), evil)],
        notes=[evil],
    )
    assert not re.search(r"<script|alert\('", html)
    assert Page(html).words


def test_many_structures_are_rows_and_not_columns(zone_report: str) -> None:
    text = Page(zone_report).text
    heads = [row.count('<th scope="col"') for row in re.findall(r"<thead>.*?</thead>", zone_report, re.DOTALL)]
    assert max(heads) < 12
    cards = re.findall(r"<dt>(.*?)</dt>", zone_report.split("</dl>")[0])
    assert cards == ["foreground Dice", "Zone23 Dice", "whole tree Dice", "clDice", "parts off", "centreline length"]
    assert "Zone23 0.333 0.300" in text
    assert "foreground 0.928 0.321" in text


def test_the_whole_tree_is_below_its_zones_and_in_no_mean(zone_report: str, zones: Scores) -> None:
    text, summary = Page(zone_report).text, summarise(zones.rows, zones.trees)
    tree = summary.vessels()[-1]
    assert tree.vessel is not None
    assert f"whole tree {tree.vessel['cl_dice'].mean:.3f} ±" in text
    # Zone23 is found in one case of three; Zone22 in two, and so are Zone1 and Zone2 in their places; 19 always.
    assert summary.foreground_dice == pytest.approx((19 + 3 * 2 / 3 + 1 / 3) / 23)
    assert "foreground Dice 0.928 mean over 23 structures" in text


@pytest.mark.usefixtures("_empty_plots")
def test_swapped_sides_have_a_warning(zone_report: str, cohort: tuple[ScoreRow, ...]) -> None:
    page = Page(zone_report)
    assert {"id": "sides", "class": "warning"} in page.attributes("section")
    assert "c : Zone1 is at the label of Zone2." in page.text
    assert "2 of 6 structures with a partner" in page.text
    assert "body's other side" not in Page(render_report(cohort, title="x")).text


def test_vessels_are_projected_and_have_no_clinical_section(zone_report: str) -> None:
    page = Page(zone_report)
    alts = [str(attributes["alt"]) for attributes in page.attributes("img")]
    assert any("projected from the front, the left and the feet" in alt for alt in alts)
    assert {"vessels", "clinical"} & page.ids == {"vessels"}


@pytest.mark.usefixtures("_empty_plots")
def test_a_single_vessel_has_its_scores_in_each_line_of_a_case() -> None:
    label = np.zeros((9, 9, 24), np.uint8)
    label[3:6, 3:6, 1:22] = 1
    short = label.copy()
    short[:, :, 17:] = 0
    scores = evaluate(
        [EvaluationPair("a", "a", short, label, (1.0, 1.0, 2.0))], structures={"LAD": 1}, vessel_structures=["LAD"]
    )
    text = Page(render_report(scores.rows, title="Coronaries")).text
    # 16 of 21 slices: Dice 2 * 16 / 37, clDice the same of the middle line; 30 mm of 40.
    assert "LAD 0.865 0.0 0.0 0.0 −25.0 0" in text
    assert re.search(r"a 0\.865 0\.865 \d+\.\d 0\.865 0 −25\.0", text)
    assert "foreground Dice" not in text.split("Scores")[0]


@pytest.mark.usefixtures("_empty_plots")
def test_only_several_domains_have_a_table(two_vendors: tuple[ScoreRow, ...]) -> None:
    text = Page(render_report(two_vendors, title="M&Ms")).text
    assert f"D 1 2 {summarise(two_vendors).domains[1].foreground_dice:.3f} 0.500 ± 0.707" in text
    assert "Dice of each domain's cases" in text
    one_vendor = [replace(row, domain="A") for row in two_vendors]
    assert "Dice of each domain's cases" not in Page(render_report(one_vendor, title="M&Ms")).text


@pytest.mark.usefixtures("_empty_plots")
def test_long_lists_are_cut_with_the_number_and_the_file_of_the_others(
    cohort: tuple[ScoreRow, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uumamba.evaluation.html_report.MOST_LISTED", 2)
    monkeypatch.setattr("uumamba.evaluation.html_report.LOWEST_CASES", 1)
    failure = {"key": "label", "got": "7", "expected": "0-3", "fix": "correct it"}
    failures = [failure | {"case_id": f"failed_{number}"} for number in range(5)]
    html = render_report(cohort, title="", failures=failures)
    page = Page(html)
    assert "The 2 of 6 cases with the lowest mean Dice" in page.text
    assert "4 more are in scores.csv." in page.text
    assert "3 more are in failures.json." in page.text
    assert "failed_1" in page.text
    assert "failed_2" not in page.text
    best = max(case_dice(cohort).items(), key=lambda item: item[1])[0]
    assert best not in page.text


@pytest.mark.usefixtures("_empty_plots")
def test_a_case_without_a_row_of_a_structure_has_a_dash(cohort: tuple[ScoreRow, ...]) -> None:
    assert "a_1 ED NOR 1.000 1.000 1.000 – " in Page(render_report(cohort[1:], title="")).text
