from collections.abc import Callable
from dataclasses import replace

import numpy as np
from rich.console import Console
from rich.table import Table

from uumamba.evaluation import EvaluationPair, ScoreRow, Scores, evaluate, patient_table, summarise
from uumamba.evaluation.tables import (
    describe_sides,
    domain_table,
    ejection_fraction_table,
    summary_table,
    vessel_table,
)


def render_lines(table: Table) -> list[str]:
    """Lines on a terminal of 80 columns."""
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


def render_words(table: Table) -> list[list[str]]:
    """Words of each line, without the frame."""
    return [line.replace("│", " ").replace("┃", " ").split() for line in render_lines(table)]


def test_the_summary_table_shows_every_structure_and_phase_with_its_misses(cohort: tuple[ScoreRow, ...]) -> None:
    lines = render_words(summary_table(cohort))
    assert lines[0] == ["6", "cases", "of", "3", "patients"]
    # Dice of RV at ED: 180/190, 0 and 1.
    at_ed = next(line for line in lines if line[:2] == ["RV", "ED"])
    assert at_ed[2:5] == ["0.649", "±", "0.563"]
    assert at_ed[-3:] == ["3", "1", "0"]
    foot = next(line for line in lines if line[:1] == ["foreground"])
    assert foot[1:] == ["all", f"{summarise(cohort).foreground_dice:.3f}"]


def test_the_ejection_fraction_table_shows_prediction_and_label_by_group(cohort: tuple[ScoreRow, ...]) -> None:
    table = ejection_fraction_table(patient_table(cohort))
    assert table is not None
    assert ["NOR", "2", "50.0", "/", "55.0", "55.6", "/", "45.0"] in render_words(table)


def test_undefined_means_are_a_dash_and_unknown_phases_groups_and_vessels_are_left_out(
    make_pair: Callable[..., EvaluationPair], structures: dict[str, int]
) -> None:
    rows = evaluate([make_pair("a", {"LV": 5}, {"LV": 5})], structures=structures).rows
    lines = render_words(summary_table(rows))
    assert lines[0] == ["1", "case", "of", "1", "patient"]
    assert "phase" not in lines[2]
    assert ["RV", "-", "-", "0", "0", "0"] in lines
    assert ["foreground", "1.000"] in lines
    assert ejection_fraction_table(patient_table([replace(row, phase="ED") for row in rows])) is None
    assert vessel_table(summarise(rows)) is None


def two_zones(make_pair: Callable[..., EvaluationPair], structures: dict[str, int], **predicted: int) -> Scores:
    pair = make_pair("a", predicted, {"RV": 10, "LV": 10})
    return evaluate([pair], structures=structures, vessel_structures=["RV", "LV"], mirror_pairs=[("RV", "LV")])


def test_the_table_of_vessels_ends_with_the_whole_tree(
    make_pair: Callable[..., EvaluationPair], structures: dict[str, int]
) -> None:
    scores = two_zones(make_pair, structures, RV=10)
    table = vessel_table(summarise(scores.rows, scores.trees))
    assert table is not None
    # Ten voxels in a row each, in two slabs that do not touch: the label has two parts, of which one was found.
    assert [line for line in render_words(table) if line[-1:] in (["0.0"], ["-100.0"], ["-50.0"])] == [
        ["RV", "1.000", "0.0", "0.0", "0.0", "0.0"],
        ["LV", "0.000", "1.0", "0.0", "0.0", "-100.0"],
        ["whole", "tree", "0.667", "1.0", "0.0", "0.0", "-50.0"],
    ]


def test_twenty_three_zones_fit_eighty_columns() -> None:
    labels = np.repeat(np.arange(24, dtype=np.uint8), 60).reshape(24, 60)[:, :, None]
    zones = {f"InternalIlia{value:02d}": value for value in range(1, 24)}
    pairs = [EvaluationPair(c, c, np.roll(labels, n, 0), labels, (99.0, 1.0, 1.0)) for n, c in enumerate("ab")]
    scores = evaluate(pairs, structures=zones, vessel_structures=list(zones))
    summary = summarise(scores.rows, scores.trees)
    for table in (summary_table(scores.rows), vessel_table(summary)):
        assert table is not None
        assert max(len(line) for line in render_lines(table)) <= 80
        assert not any("…" in line for line in render_lines(table))
        assert {name for line in render_lines(table) for name in zones if name in line} == {*zones}


def test_sides_without_a_swap_are_described_in_one_sentence(
    make_pair: Callable[..., EvaluationPair], structures: dict[str, int]
) -> None:
    sides = summarise(two_zones(make_pair, structures, RV=10).rows).sides
    assert sides is not None
    assert describe_sides(sides) == "Left and right: none of 1 paired structures is swapped."


def test_the_table_by_domain_has_a_line_for_each_domain(two_vendors: tuple[ScoreRow, ...]) -> None:
    summary = summarise(two_vendors)
    lines = render_words(domain_table(summary))
    assert ["domain", "cases", "foreground", "RV", "MYO", "LV"] in lines
    # RV of vendor D: right at ED, invented at ES.
    last = summary.domains[1]
    assert ["D", "2", f"{last.foreground_dice:.3f}", "0.500", "1.000", f"{last.structures[2].dice.mean:.3f}"] in lines
    assert max(map(len, render_lines(domain_table(summary)))) <= 80
