"""Summary tables for a terminal."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from uumamba.evaluation.cards import MOST_SIDE_BY_SIDE
from uumamba.evaluation.clinical import PatientIndices, ejection_fractions, group_means
from uumamba.evaluation.means import Moments
from uumamba.evaluation.scores import ScoreRow
from uumamba.evaluation.spread import Spread
from uumamba.evaluation.summary import ALL_PHASES, SideSummary, Summary, summarise

NOT_DEFINED = "-"


def summary_table(rows: Sequence[ScoreRow]) -> Table:
    """Build a table of Dice, HD95 and counts by structure and phase, with the foreground mean in its footer.

    It fits 80 columns.

    Args:
        rows: rows of ``scores.csv``.
    """
    summary = summarise(rows)
    title = f"{_count(summary.n_cases, 'case')} of {_count(summary.n_patients, 'patient')}"
    table = Table(title=title, title_justify="left", show_footer=True)
    table.add_column("structure", footer="foreground", no_wrap=True)
    phased = any(row.phase != ALL_PHASES for row in summary.structures)
    if phased:
        table.add_column("phase", footer=ALL_PHASES, no_wrap=True)
    table.add_column("Dice", footer=_number(summary.foreground_dice, 3), justify="right", no_wrap=True)
    for heading in ("HD95, mm", "n", "missed", "spurious"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in summary.structures:
        name = [row.structure, row.phase] if phased else [row.structure]
        scores = [_with_spread(row.dice, 3), _with_spread(row.hd95_mm, 1)]
        counts = map(str, (row.dice.n, row.n_missed, row.n_spurious))
        table.add_row(*name, *scores, *counts, end_section=phased and row.phase == ALL_PHASES)
    return table


def domain_table(summary: Summary) -> Table:
    """Build a table of mean Dice by domain: foreground, then each structure unless there are many."""
    names = [row.structure for row in summary.overall()]
    names = names if len(names) <= MOST_SIDE_BY_SIDE else []
    table = _make_table("Dice by domain", "domain", "cases", "foreground", *names)
    for each in summary.domains:
        means = {row.structure: row.dice.mean for row in each.structures}
        cells = [_number(value, 3) for value in (each.foreground_dice, *(means.get(name) for name in names))]
        table.add_row(each.domain, str(each.n_cases), *cells)
    return table


def vessel_table(summary: Summary) -> Table | None:
    """Build a table of clDice and errors of parts, tunnels, cavities (Betti numbers) and length.

    The whole tree is the last row. None if there is no vessel.
    """
    vessels = summary.vessels()
    if not vessels:
        return None
    table = _make_table("Vessels", "structure", "clDice", "parts", "tunnels", "cavities", "length, %")
    for number, row in enumerate(vessels):
        if row.vessel is not None:
            errors = (row.vessel.betti0_error, row.vessel.betti1_error, row.vessel.betti2_error)
            cells = [_with_spread(row.vessel.cl_dice, 3), *(_number(error.mean, 1) for error in errors)]
            length = _with_spread(row.vessel.length_error.percent, 1)
            table.add_row(row.structure, *cells, length, end_section=number == len(vessels) - 2)
    return table


def spread_table(spreads: Mapping[str, Spread]) -> Table:
    """Build a table of mean validation Dice over the trainings of a run, with the defined spreads."""
    trainings = max(found.n for found in spreads.values())
    columns = {"Dice": "mean", "sd": "sd", "sd over seeds": "sd_over_seeds", "sd over folds": "sd_over_folds"}
    shown = {
        name: key for name, key in columns.items() if any(getattr(each, key) is not None for each in spreads.values())
    }
    table = _make_table(f"Validation Dice of {_count(trainings, 'training')}", "structure", *shown)
    for structure, found in spreads.items():
        table.add_row(structure, *(_number(getattr(found, key), 3) for key in shown.values()))
    return table


def describe_sides(sides: SideSummary) -> str:
    """Describe structures at the label of their partner on the other side of the body."""
    if not sides.swapped:
        return f"Left and right: none of {sides.n_checked} paired structures lies on its partner's side."
    found = "; ".join(map(str, sides.swapped))
    return f"WARNING, left and right: {len(sides.swapped)} of {sides.n_checked} paired structures are swapped. {found}."


def ejection_fraction_table(patients: Sequence[PatientIndices]) -> Table | None:
    """Build a table of mean ejection fractions by diagnosis; None if no group or chamber is known."""
    groups = group_means(patients)
    chambers = ejection_fractions(patients)
    if not groups or not chambers:
        return None
    table = Table(title="Ejection fraction, % (prediction / label)", title_justify="left")
    table.add_column("group")
    table.add_column("patients", justify="right")
    for name in chambers:
        table.add_column(f"{name[:2].upper()} EF", justify="right")
    for group, means in groups.items():
        pairs = [means[name] for name in chambers]
        cells = [f"{_number(pair['prediction'], 1)} / {_number(pair['label'], 1)}" for pair in pairs]
        table.add_row(group, str(means["n_patients"]), *cells)
    return table


def _make_table(title: str, first: str, *numbers: str) -> Table:
    """Return an empty table with a column of names and columns of numbers."""
    table = Table(title=title, title_justify="left")
    table.add_column(first, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _with_spread(moments: Moments, digits: int) -> str:
    mean = _number(moments.mean, digits)
    return mean if moments.sd is None else f"{mean} ± {moments.sd:.{digits}f}"


def _number(value: float | None, digits: int) -> str:
    return NOT_DEFINED if value is None else f"{value:z.{digits}f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
