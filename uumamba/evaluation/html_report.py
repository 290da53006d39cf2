"""Report: one self-contained HTML file with numbers from ``scores.csv``."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uumamba.evaluation.cards import MOST_SIDE_BY_SIDE, make_cards
from uumamba.evaluation.clinical import (
    PatientIndices,
    agreement,
    group_means,
    list_ejection_fractions,
    may_be_cardiac,
    patient_table,
    why_no_patient_table,
)
from uumamba.evaluation.colours import assign_colours
from uumamba.evaluation.html_environment import make_environment
from uumamba.evaluation.means import case_dice
from uumamba.evaluation.overlays import OverlayCase, draw_overlay
from uumamba.evaluation.plots import plot_dice, plot_ejection_fraction, plot_training
from uumamba.evaluation.projections import ERROR_COLOUR, draw_projections
from uumamba.evaluation.scores import WHOLE_TREE, ScoreRow, group_rows
from uumamba.evaluation.site_curves import SiteTraining, plot_sites
from uumamba.evaluation.spread import Spread
from uumamba.evaluation.summary import RULES, Summary, summarise

LOWEST_CASES = 5
MOST_LISTED = 1000
"""Longest list; browsers open a longer table slowly or not at all, so its rest is only in the files."""
LOWEST_STRUCTURES = 3
_UNITS = {"ml": "ml", "g": "g", "percent": "%"}


@dataclass(frozen=True)
class Overlay:
    """Case to draw, and its role: ``"best"``, ``"median"`` or ``"worst"``."""

    role: str
    case: OverlayCase


def render_report(
    rows: Sequence[ScoreRow],
    *,
    title: str,
    trees: Sequence[ScoreRow] = (),
    structures: Mapping[str, int | Sequence[int]] | None = None,
    colours: Mapping[str, str] | None = None,
    overlays: Sequence[Overlay] = (),
    training: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    sites: Sequence[SiteTraining] = (),
    spreads: Mapping[str, Spread] | None = None,
    baselines: Mapping[str, Mapping[str, float]] | None = None,
    failures: Sequence[Mapping[str, str]] = (),
    notes: Sequence[str] = (),
) -> str:
    """Render the report as HTML with embedded pictures and style.

    A list has at most 1000 lines, the table of cases those with the lowest mean Dice; the report names the file with
    the others.

    Args:
        rows: rows of ``scores.csv``.
        title: heading.
        trees: rows of ``trees.csv``.
        structures: label value of each structure, or all label values of each region, for the overlays.
        colours: colour of a structure or region, such as ``"#d62728"``; others get the default palette's.
        overlays: cases to draw.
        training: rows of each fold's ``metrics.jsonl``.
        sites: decentralized trainings, one per fold.
        spreads: spread of the validation Dice over folds and seeds, by structure; shown for several trainings.
        baselines: foreground ``"dice"`` and Dice of each structure, by name of the baseline.
        failures: ``case_id``, ``key``, ``got``, ``expected`` and ``fix`` of cases that could not be scored.
        notes: sentences on missing parts and on the data.
    """
    summary, patients = summarise(rows, trees), patient_table(rows)
    names = [row.structure for row in summary.overall()]
    return (
        make_environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            summary=summary,
            structures=names,
            many=len(names) > MOST_SIDE_BY_SIDE,
            phased=any(row.phase for row in rows),
            grouped=any(row.group for row in rows),
            vessels=summary.vessels(),
            whole_tree=WHOLE_TREE,
            colours=assign_colours(names, colours),
            lead=_write_lead(summary),
            cards=make_cards(summary, patients),
            overlays=[_draw_case(overlay, rows, structures or {}, colours) for overlay in overlays],
            error_colour=ERROR_COLOUR,
            dice_plot=plot_dice(rows, colours=colours),
            cases=_list_cases(rows, {row.case_id: row for row in trees}),
            lowest=LOWEST_CASES,
            most=MOST_LISTED,
            clinical=_describe_patients(patients),
            why_no_clinical=why_no_patient_table(rows) if may_be_cardiac(rows) else None,
            scored=True,
            **_describe_training(training or {}, sites, spreads or {}),
            baselines=baselines or {},
            failures=failures,
            notes=notes,
            rules=RULES,
        )
    )


def render_training_report(
    *,
    title: str,
    training: Mapping[str, Sequence[Mapping[str, Any]]],
    sites: Sequence[SiteTraining] = (),
    spreads: Mapping[str, Spread] | None = None,
) -> str:
    """Render the report of a run without scores: its training alone.

    Args:
        title: heading.
        training: rows of each fold's ``metrics.jsonl``.
        sites: as for :func:`render_report`.
        spreads: as for :func:`render_report`.
    """
    template = make_environment().get_template("training_report.html.j2")
    return template.render(title=title, scored=False, **_describe_training(training, sites, spreads or {}))


def _describe_training(
    training: Mapping[str, Sequence[Mapping[str, Any]]], sites: Sequence[SiteTraining], spreads: Mapping[str, Spread]
) -> dict[str, Any]:
    return {
        "training_plot": plot_training(training) if training else None,
        "folds": _list_folds(training),
        "sites": [(each, plot_sites(each)) for each in sites],
        "spreads": {name: found for name, found in spreads.items() if found.n > 1},
    }


def _write_lead(summary: Summary) -> str:
    missed, spurious = (sum(getattr(row, count) for row in summary.overall()) for count in ("n_missed", "n_spurious"))
    verdict = f"Missed entirely: {missed}; found where the label has none: {spurious}"
    if not missed and not spurious:
        verdict = "Every labelled structure was found, and no other"
    return f"{summary.n_cases} cases of {summary.n_patients} patients. {verdict}."


def _draw_case(
    overlay: Overlay,
    rows: Sequence[ScoreRow],
    structures: Mapping[str, int | Sequence[int]],
    colours: Mapping[str, str] | None,
) -> dict[str, Any]:
    own = [row for row in rows if row.case_id == overlay.case.case_id]
    # A ray shows one colour for a voxel, so regions of several values are not projected.
    single = {name: value for name, value in structures.items() if isinstance(value, int)}
    vessels = [row.structure for row in own if row.is_vessel and row.structure in single]
    return {
        "role": overlay.role,
        "case_id": overlay.case.case_id,
        "phase": own[0].phase,
        "group": own[0].group,
        "dice": case_dice(own).get(overlay.case.case_id),
        "each": _select_dice(own),
        "png": draw_overlay(overlay.case, structures, close_up=bool(vessels), colours=colours),
        "projections": draw_projections(overlay.case, single, vessels, colours=colours) if vessels else None,
    }


def _select_dice(rows: Sequence[ScoreRow]) -> list[tuple[str, float]]:
    """Return the Dice of each structure; of many, only the lowest."""
    each = [(row.structure, row.dice) for row in rows]
    if len(each) <= MOST_SIDE_BY_SIDE:
        return each
    known = [(structure, dice) for structure, dice in each if not math.isnan(dice)]
    return sorted(known, key=lambda pair: pair[1])[:LOWEST_STRUCTURES]


def _list_cases(rows: Sequence[ScoreRow], trees: Mapping[str, ScoreRow]) -> list[dict[str, Any]]:
    """Return one table line for each case, lowest mean Dice first.

    Cases without any structure are last. Of many cases only the first have a line.
    """
    means, by_case = case_dice(rows), group_rows(rows, "case_id")
    ranked = sorted(by_case, key=lambda case_id: (case_id not in means, means.get(case_id, 0.0), case_id))
    lines = []
    for case_id in ranked[:MOST_LISTED]:
        own = by_case[case_id]
        lines.append(
            {
                "case_id": case_id,
                "phase": own[0].phase,
                "group": own[0].group,
                "dice": means.get(case_id),
                "scores": {row.structure: row for row in own},
                "lowest": _select_dice(own),
                "missed": sum(row.volume_ml == 0 < row.label_volume_ml for row in own),
                "tree": trees.get(case_id, own[0] if len(own) == 1 else None),
            }
        )
    return lines


def _describe_patients(patients: Sequence[PatientIndices]) -> dict[str, Any] | None:
    if not patients:
        return None
    agreed = agreement(patients)
    fractions = list_ejection_fractions(patients)
    return {
        "n_patients": len(patients),
        "agreement": [{"name": _format_index(name)} | values for name, values in agreed.items()],
        "groups": group_means(patients),
        "fractions": fractions,
        "plots": [
            (name[:2].upper(), plot_ejection_fraction(patients, name)) for name in fractions if agreed[name]["n"]
        ],
    }


def _format_index(index: str) -> str:
    """Return the title of an index.

    Example:
        >>> _format_index("rv_ef_percent")
        'RV EF, %'
    """
    chamber, measure, unit = index.split("_")
    return f"{chamber.upper()} {measure if measure == 'mass' else measure.upper()}, {_UNITS[unit]}"


def _list_folds(training: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    return [
        {
            "fold": fold,
            "epochs": len(rows),
            "loss": rows[-1].get("loss") if rows else None,
            "best_dice": max((row["dice"] for row in rows if isinstance(row.get("dice"), int | float)), default=None),
            "minutes": sum(float(row.get("seconds") or 0.0) for row in rows) / 60,
        }
        for fold, rows in training.items()
    ]
