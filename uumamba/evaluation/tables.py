"""Summary tables for a terminal."""

from collections.abc import Mapping, Sequence

from rich.console import JustifyMethod
from rich.table import Table

from uumamba.evaluation.cards import MOST_SIDE_BY_SIDE
from uumamba.evaluation.clinical import PatientIndices, group_means, list_ejection_fractions
from uumamba.evaluation.means import Moments
from uumamba.evaluation.scores import ScoreRow
from uumamba.evaluation.spread import Spread
from uumamba.evaluation.summary import ALL_PHASES, SideSummary, Summary, summarise


def summary_table(rows: Sequence[ScoreRow]) -> Table:
    """Build a table of Dice, HD95 and counts by structure and phase.

    The footer holds the foreground mean. The table fits 80 columns.

    Args:
        rows: rows of ``scores.csv``.
    """
    summary = summarise(rows)
    title = f"{_format_count(summary.n_cases, 'case')} of {_format_count(summary.n_patients, 'patient')}"
    phased = any(row.phase != ALL_PHASES for row in summary.structures)
    names = ["structure", "phase"] if phased else ["structure"]
    footers = {
        "structure": "foreground",
        "phase": ALL_PHASES,
        "Dice": _format_defined(summary.foreground_dice, 3),
    }
    table = _make_table(title, names, ["Dice", "HD95, mm", "n", "missed", "spurious"], footers=footers)
    for row in summary.structures:
        name = [row.structure, row.phase] if phased else [row.structure]
        scores = [_format_moments(row.dice, 3), _format_moments(row.hd95_mm, 1)]
        table.add_row(
            *name,
            *scores,
            *map(str, (row.dice.n, row.n_missed, row.n_spurious)),
            end_section=phased and row.phase == ALL_PHASES,
        )
    return table


def domain_table(summary: Summary) -> Table:
    """Build a table of mean Dice by domain.

    The columns are the foreground and each structure; of more than six structures, the foreground only.
    """
    names = [row.structure for row in summary.overall()]
    names = names if len(names) <= MOST_SIDE_BY_SIDE else []
    table = _make_table("Dice by domain", ["domain"], ["cases", "foreground", *names])
    for each in summary.domains:
        means = {row.structure: row.dice.mean for row in each.structures}
        cells = [_format_defined(value, 3) for value in (each.foreground_dice, *(means.get(name) for name in names))]
        table.add_row(each.domain, str(each.n_cases), *cells)
    return table


def vessel_table(summary: Summary) -> Table | None:
    """Build a table of clDice, Betti errors and length errors of vessels.

    Betti errors are those of the numbers of parts, tunnels and cavities. The whole tree is the last row. The result is
    None if there is no vessel.
    """
    vessels = summary.vessels()
    table = _make_table("Vessels", ["structure"], ["clDice", "parts", "tunnels", "cavities", "length, %"])
    for number, row in enumerate(vessels):
        scores = row.vessel or {}
        errors = [_format_defined(scores[f"betti{dimension}_error"].mean, 1) for dimension in range(3)]
        cells = [_format_moments(scores["cl_dice"], 3), *errors, _format_moments(scores["length_error"].percent, 1)]
        table.add_row(row.structure, *cells, end_section=number == len(vessels) - 2)
    return table if vessels else None


def spread_table(spreads: Mapping[str, Spread]) -> Table:
    """Build a table of mean validation Dice over a run's trainings.

    Columns of standard deviations follow, without those that are undefined for all structures.
    """
    columns = {"Dice": "mean", "sd": "sd", "sd over seeds": "sd_over_seeds", "sd over folds": "sd_over_folds"}
    shown = {
        name: key for name, key in columns.items() if any(getattr(each, key) is not None for each in spreads.values())
    }
    trainings = max(found.n for found in spreads.values())
    table = _make_table(f"Validation Dice of {_format_count(trainings, 'training')}", ["structure"], [*shown])
    for structure, found in spreads.items():
        table.add_row(structure, *(_format_defined(getattr(found, key), 3) for key in shown.values()))
    return table


def describe_sides(sides: SideSummary) -> str:
    """Describe swapped structures in one sentence."""
    if not sides.swapped:
        return f"Left and right: none of {sides.n_checked} paired structures is swapped."
    found = "; ".join(f"{swap.case_id}: {swap.structure} is at the label of {swap.partner}" for swap in sides.swapped)
    return f"WARNING, left and right: {len(sides.swapped)} of {sides.n_checked} paired structures are swapped. {found}."


def ejection_fraction_table(patients: Sequence[PatientIndices]) -> Table | None:
    """Build a table of mean ejection fractions by diagnosis.

    The result is None if no group or no chamber is known.
    """
    groups, chambers = group_means(patients), list_ejection_fractions(patients)
    columns = ["patients", *(f"{name[:2].upper()} EF" for name in chambers)]
    table = _make_table("Ejection fraction, % (prediction / label)", ["group"], columns)
    for group, means in groups.items():
        pairs = [means[name] for name in chambers]
        cells = [f"{_format_defined(pair['prediction'], 1)} / {_format_defined(pair['label'], 1)}" for pair in pairs]
        table.add_row(group, str(means["n_patients"]), *cells)
    return table if groups and chambers else None


def _make_table(
    title: str, names: Sequence[str], numbers: Sequence[str], *, footers: Mapping[str, str] | None = None
) -> Table:
    """Return an empty table with columns of names, then of numbers.

    ``footers`` holds the footer of a column by its heading.
    """
    footers = footers or {}
    table = Table(title=title, title_justify="left", show_footer=bool(footers))
    for heading in (*names, *numbers):
        justify: JustifyMethod = "right" if heading in numbers else "left"
        table.add_column(heading, footer=footers.get(heading, ""), justify=justify, no_wrap=True)
    return table


def _format_moments(moments: Moments, digits: int) -> str:
    mean = _format_defined(moments.mean, digits)
    return mean if moments.sd is None else f"{mean} ± {moments.sd:.{digits}f}"


def _format_defined(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:z.{digits}f}"


def _format_count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
