"""Dice, HD95 and ejection fraction of an ACDC run in one row."""

import math
from collections.abc import Sequence
from statistics import fmean

from uumamba.evaluation import mean_dice_of, patient_table
from uumamba.evaluation.scores import ScoreRow

STRUCTURES = ("RV", "MYO", "LV")


def summarize_scores(rows: Sequence[ScoreRow]) -> dict[str, float | None]:
    """Summarize the rows of ``scores.csv``.

    HD95 is the mean of finite distances, None without any, and ``missed`` counts total misses. ``lvef_mae`` is the mean
    absolute error of the LV's ejection fraction in percent points.
    """
    rows = [row for row in rows if row.structure in STRUCTURES]
    dice = mean_dice_of(rows).as_dict()
    row = {"dice": dice["dice"]} | {f"dice_{name}": dice[name] for name in STRUCTURES}
    for name in STRUCTURES:
        finite = [each.hd95_mm for each in rows if each.structure == name and math.isfinite(each.hd95_mm)]
        row[f"hd95_mm_{name}"] = fmean(finite) if finite else math.nan
    row["missed"] = sum(math.isinf(each.hd95_mm) for each in rows)
    errors = [abs(patient.difference("lv_ef_percent")) for patient in patient_table(rows)]
    row["lvef_mae"] = fmean(errors) if errors else math.nan
    return {name: round(value, 4) if math.isfinite(value) else None for name, value in row.items()}
