"""The summary for a terminal."""

from collections.abc import Sequence

from rich.table import Table

from uumamba.evaluation.clinical import PatientIndices, group_means
from uumamba.evaluation.scores import ScoreRow
from uumamba.evaluation.summary import ALL_PHASES, Moments, StructureSummary, summarise

NOT_DEFINED = "-"


def summary_table(rows: Sequence[ScoreRow]) -> Table:
    """Dice, HD95 and counts by structure and phase, with the foreground mean at the foot; 80 columns hold it.

    Args:
        rows: those of ``scores.csv``.
    """
    summary = summarise(rows)
    title = f"{_count(summary.n_cases, 'case')} of {_count(summary.n_patients, 'patient')}"
    table = Table(title=title, title_justify="left", show_footer=True)
    foreground = NOT_DEFINED if summary.foreground_dice is None else f"{summary.foreground_dice:.3f}"
    table.add_column("structure", footer="foreground", no_wrap=True)
    table.add_column("phase", footer=ALL_PHASES, no_wrap=True)
    table.add_column("Dice", footer=foreground, justify="right", no_wrap=True)
    for heading in ("HD95, mm", "n", "missed", "spurious"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in summary.structures:
        table.add_row(*_cells(row), end_section=row.phase == ALL_PHASES)
    return table


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
    return [row.structure, row.phase, *scores, str(row.dice.n), *misses]


def _with_spread(moments: Moments, digits: int) -> str:
    mean = _number(moments.mean, digits)
    return mean if moments.sd is None else f"{mean} ± {moments.sd:.{digits}f}"


def _number(value: float | None, digits: int) -> str:
    return NOT_DEFINED if value is None else f"{value:.{digits}f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
