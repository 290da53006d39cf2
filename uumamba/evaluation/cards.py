"""Headline numbers of the report, and number formats."""

import math
from collections.abc import Sequence

from uumamba.evaluation.clinical import PatientIndices, agreement
from uumamba.evaluation.summary import StructureSummary, Summary

MOST_SIDE_BY_SIDE = 6
"""Up to this number, each structure has a card and a column; more structures become rows."""


def format_number(value: float | None, digits: int = 3) -> str:
    """Format a number with typographic signs.

    A minus sign is U+2212, an undefined number an en dash, an infinite number the infinity sign.
    """
    if value is None or math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:z.{digits}f}".replace("-", "−")


def make_cards(summary: Summary, patients: Sequence[PatientIndices]) -> list[dict[str, str]]:
    """Return the cards of the report, each with value, name and note.

    The cards are the Dice of the foreground and of each structure (of many, the lowest only), the scores of the whole
    vessel tree, and the bias of the LV ejection fraction.
    """
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
        cards += [_make_dice_card(row) for row in structures]
    elif known := [row for row in structures if row.dice.mean is not None]:
        cards.append(
            _make_dice_card(min(known, key=lambda row: row.dice.mean or 0.0)) | {"note": "lowest of all structures"}
        )
    cards += _make_vessel_cards(summary)
    agreed = agreement(patients).get("lv_ef_percent")
    if agreed and agreed["limits"]:
        low, high = (format_number(limit, 1) for limit in agreed["limits"])
        cards.append(
            {
                "value": _format_signed(agreed["bias"]),
                "name": "bias of LV EF",
                "note": f"points, 95\u00a0% limits {low}\u00a0to\u00a0{high}",
            }
        )
    return cards


def _make_dice_card(row: StructureSummary) -> dict[str, str]:
    return {
        "value": format_number(row.dice.mean),
        "name": f"{row.structure} Dice",
        "note": f"± {format_number(row.dice.sd)}, HD95\u00a0{format_number(row.hd95_mm.mean, 1)}\u00a0mm",
    }


def _make_vessel_cards(summary: Summary) -> list[dict[str, str]]:
    """Return the cards of the whole tree, or of the only vessel."""
    vessels = summary.vessels()
    if not vessels or (summary.whole_tree is None and len(vessels) > 1):
        return []
    scores = vessels[-1].vessel or {}
    cl_dice, length = scores["cl_dice"], scores["length_error"].percent
    parts, tunnels = (format_number(scores[f"betti{number}_error"].mean, 1) for number in (0, 1))
    return [
        *([_make_dice_card(vessels[-1])] if summary.whole_tree else []),
        {"value": format_number(cl_dice.mean), "name": "clDice", "note": f"± {format_number(cl_dice.sd)}"},
        {"value": parts, "name": "parts off", "note": f"Betti\u00a00; tunnels (Betti\u00a01) {tunnels}"},
        {
            "value": f"{_format_signed(length.mean)}\u00a0%" if length.mean is not None else "–",
            "name": "centreline length",
            "note": f"± {format_number(length.sd, 1)} against the label's",
        },
    ]


def _format_signed(value: float) -> str:
    text = format_number(value, 1)
    return f"+{text}" if float(f"{value:.1f}") > 0 else text
