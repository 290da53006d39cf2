from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from uumamba.evaluation import EvaluationPair, ScoreRow, evaluate, patient_table, summarise
from uumamba.evaluation.tables import ejection_fraction_table, summary_table


def rendered(table: Table) -> list[list[str]]:
    """The words of each line, without the frame."""
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table)
    return [line.replace("│", " ").replace("┃", " ").split() for line in capture.get().splitlines()]


def test_the_summary_table_shows_every_structure_and_phase_with_its_misses(cohort: tuple[ScoreRow, ...]) -> None:
    lines = rendered(summary_table(cohort))
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
    assert ["NOR", "2", "50.0", "/", "55.0", "55.6", "/", "45.0"] in rendered(table)


def test_without_groups_there_is_no_ejection_fraction_table(
    make_pair: Callable[..., EvaluationPair], structures: dict[str, int]
) -> None:
    rows = evaluate([make_pair("a", {"LV": 5}, {"LV": 5}, phase="ED")], structures=structures).rows
    assert ejection_fraction_table(patient_table(rows)) is None


def test_undefined_means_are_a_dash(make_pair: Callable[..., EvaluationPair], structures: dict[str, int]) -> None:
    lines = rendered(summary_table(evaluate([make_pair("a", {"LV": 5}, {"LV": 5})], structures=structures).rows))
    assert lines[0] == ["1", "case", "of", "1", "patient"]
    assert ["RV", "all", "-", "-", "0", "0", "0"] in lines
