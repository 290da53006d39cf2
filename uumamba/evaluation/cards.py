"""Headline numbers of the report, and number formats."""

import math
from collections.abc import Sequence

from uumamba.evaluation.clinical import PatientIndices, agreement
from uumamba.evaluation.summary import StructureSummary, Summary

MOST_SIDE_BY_SIDE = 6
"""Up to this number, each structure has a card and a column; more structures become rows."""


def format_number(value: float | None, digits: int = 3) -> str:
    """Format a number: an en dash if undefined, the infinity sign for a miss, a true minus sign."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    text = f"{value:.{digits}f}"
    return text.replace("-", "" if float(text) == 0 else "−")


def make_cards(summary: Summary, patients: Sequence[PatientIndices]) -> list[dict[str, str]]:
    """Return cards of foreground and structure Dice (the lowest of many), vessel tree and LV EF."""
    structures = summary.overall()
    many = len(structures) > MOST_SIDE_BY_SIDE
    names = f"{len(structures)} structures" if many else ", ".join(row.structure for row in structures)
    foreground = {
        "value": format_number(summary.foreground_dice),
        "name": "foreground Dice",
        "note": f"mean over {names}",
    }
    cards = [foreground] if len(structures) > 1 else []
    if not many:
        cards += [_dice_card(row) for row in structures]
    elif known := [row for row in structures if row.dice.mean is not None]:
        cards.append(_dice_card(min(known, key=lambda row: row.dice.mean or 0.0)) | {"note": "the lowest of them"})
    cards += _vessel_cards(summary)
    agreed = agreement(patients).get("lv_ef_percent")
    if agreed and agreed["limits"]:
        low, high = (format_number(limit, 1) for limit in agreed["limits"])
        note = f"points, 95\u00a0% limits {low}\u00a0to\u00a0{high}"
        cards.append({"value": _signed(agreed["bias"]), "name": "bias of LV EF", "note": note})
    return cards


def _dice_card(row: StructureSummary) -> dict[str, str]:
    note = f"± {format_number(row.dice.sd)}, HD95\u00a0{format_number(row.hd95_mm.mean, 1)}\u00a0mm"
    return {"value": format_number(row.dice.mean), "name": f"{row.structure} Dice", "note": note}


def _vessel_cards(summary: Summary) -> list[dict[str, str]]:
    """Return cards of the whole tree, or of the only vessel."""
    trees = [summary.whole_tree] if summary.whole_tree else [row for row in summary.overall() if row.vessel]
    if len(trees) != 1 or trees[0].vessel is None:
        return []
    tree, vessel = trees[0], trees[0].vessel
    cards = [_dice_card(tree)] if summary.whole_tree else []
    parts, tunnels = (format_number(error.mean, 1) for error in (vessel.betti0_error, vessel.betti1_error))
    length = vessel.length_error.percent
    return [
        *cards,
        {
            "value": format_number(vessel.cl_dice.mean),
            "name": "clDice",
            "note": f"± {format_number(vessel.cl_dice.sd)}",
        },
        {"value": parts, "name": "parts off", "note": f"Betti\u00a00; tunnels (Betti\u00a01) {tunnels}"},
        {
            "value": f"{_signed(length.mean)}\u00a0%" if length.mean is not None else "–",
            "name": "centreline length",
            "note": f"± {format_number(length.sd, 1)} against the label's",
        },
    ]


def _signed(value: float) -> str:
    text = format_number(value, 1)
    return f"+{text}" if float(f"{value:.1f}") > 0 else text
