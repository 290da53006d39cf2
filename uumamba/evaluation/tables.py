"""The summary for a terminal."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from uumamba.evaluation.cards import MOST_SIDE_BY_SIDE
from uumamba.evaluation.clinical import PatientIndices, group_means
from uumamba.evaluation.means import Moments
from uumamba.evaluation.scores import ScoreRow
from uumamba.evaluation.spread import Spread
from uumamba.evaluation.summary import ALL_PHASES, SideSummary, StructureSummary, Summary, summarise

NOT_DEFINED = "-"


def summary_table(rows: Sequence[ScoreRow]) -> Table:
    """Dice, HD95 and counts by structure, and by phase where there are phases; the foreground mean stands at the foot.

    80 columns hold it.

    Args:
        rows: those of ``scores.csv``.
    """
    summary = summarise(rows)
    title = f"{_count(summary.n_cases, 'case')} of {_count(summary.n_patients, 'patient')}"
    table = Table(title=title, title_justify="left", show_footer=True)
    foreground = NOT_DEFINED if summary.foreground_dice is None else f"{summary.foreground_dice:.3f}"
    table.add_column("structure", footer="foreground", no_wrap=True)
    phased = any(row.phase != ALL_PHASES for row in summary.structures)
    if phased:
        table.add_column("phase", footer=ALL_PHASES, no_wrap=True)
    table.add_column("Dice", footer=foreground, justify="right", no_wrap=True)
    for heading in ("HD95, mm", "n", "missed", "spurious"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in summary.structures:
        name = [row.structure, row.phase] if phased else [row.structure]
        table.add_row(*name, *_cells(row), end_section=phased and row.phase == ALL_PHASES)
    return table


def domain_table(summary: Summary) -> Table:
    """Mean Dice of each domain by itself, foreground first, then each structure's unless there are many."""
    table = Table(title="Dice by domain", title_justify="left")
    table.add_column("domain", no_wrap=True)
    names = [row.structure for row in summary.overall()]
    names = names if len(names) <= MOST_SIDE_BY_SIDE else []
    for heading in ("cases", "foreground", *names):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in summary.domains:
        means = {row.structure: row.dice.mean for row in each.structures}
        cells = [_number(value, 3) for value in (each.foreground_dice, *(means.get(name) for name in names))]
        table.add_row(each.domain, str(each.n_cases), *cells)
    return table


def vessel_table(summary: Summary) -> Table | None:
    """clDice, and how far off parts, tunnels, cavities (Betti numbers) and length are; None where there is no vessel.

    The whole tree stands at the end.
    """
    vessels = [row for row in (*summary.overall(), summary.whole_tree) if row is not None and row.vessel is not None]
    if not vessels:
        return None
    table = Table(title="Vessels", title_justify="left")
    table.add_column("structure", no_wrap=True)
    for heading in ("clDice", "parts", "tunnels", "cavities", "length, %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for number, row in enumerate(vessels):
        if row.vessel is not None:
            errors = (row.vessel.betti0_error, row.vessel.betti1_error, row.vessel.betti2_error)
            cells = [_with_spread(row.vessel.cl_dice, 3), *(_number(error.mean, 1) for error in errors)]
            length = _with_spread(row.vessel.length_error.percent, 1)
            table.add_row(row.structure, *cells, length, end_section=number == len(vessels) - 2)
    return table


def spread_table(spreads: Mapping[str, Spread]) -> Table:
    """Mean validation Dice over the trainings of a run, by structure, with the spread that is defined."""
    trainings = max(found.n for found in spreads.values())
    table = Table(title=f"Validation Dice of {_count(trainings, 'training')}", title_justify="left")
    table.add_column("structure", no_wrap=True)
    columns = {"Dice": "mean", "sd": "sd", "sd over seeds": "sd_over_seeds", "sd over folds": "sd_over_folds"}
    shown = {
        name: key for name, key in columns.items() if any(getattr(each, key) is not None for each in spreads.values())
    }
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for structure, found in spreads.items():
        table.add_row(structure, *(_number(getattr(found, key), 3) for key in shown.values()))
    return table


def sentence_on_sides(sides: SideSummary) -> str:
    """What was found of structures that lie where their partner on the body's other side is labelled."""
    if not sides.swapped:
        return f"Left and right: none of {sides.n_checked} paired structures lies on its partner's side."
    found = "; ".join(map(str, sides.swapped))
    return f"WARNING, left and right: {len(sides.swapped)} of {sides.n_checked} paired structures are swapped. {found}."


def ejection_fraction_table(patients: Sequence[PatientIndices]) -> Table | None:
    """Mean ejection fraction of each diagnosis, from prediction and label; None where no group or chamber is known."""
    groups = group_means(patients)
    chambers = [name for name in next(iter(groups.values()), {}) if name.endswith("_ef_percent")]
    if not chambers:
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


def _cells(row: StructureSummary) -> list[str]:
    misses = [str(row.n_missed), str(row.n_spurious)]
    scores = [_with_spread(row.dice, 3), _with_spread(row.hd95_mm, 1)]
    return [*scores, str(row.dice.n), *misses]


def _with_spread(moments: Moments, digits: int) -> str:
    mean = _number(moments.mean, digits)
    return mean if moments.sd is None else f"{mean} ± {moments.sd:.{digits}f}"


def _number(value: float | None, digits: int) -> str:
    return NOT_DEFINED if value is None else f"{value:z.{digits}f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
