import io
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from matplotlib.image import imread

from uumamba.evaluation import PatientIndices, ScoreRow, patient_table
from uumamba.evaluation.plots import plot_dice, plot_ejection_fraction, plot_training

ROWS = [{"epoch": 0, "loss": 1.0}, {"epoch": 1, "loss": 0.5, "dice": 0.4}]
ONE = PatientIndices("a", None, {"lv_ef_percent": 50.0}, {"lv_ef_percent": 55.0})
PLOTS: dict[str, Callable[[Sequence[ScoreRow]], bytes]] = {
    "no epoch": lambda rows: plot_training({}),
    "no finite loss": lambda rows: plot_training({"fold 0": [{"epoch": 0, "loss": math.inf}]}),
    "an undefined ejection fraction": lambda rows: plot_ejection_fraction(patient_table(rows), "rv_ef_percent"),
    "one patient, no limits": lambda rows: plot_ejection_fraction([ONE]),
}


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
def test_a_plot_of_undefined_values_is_drawn_without_a_warning(
    plot: Callable[[Sequence[ScoreRow]], bytes], cohort: tuple[ScoreRow, ...]
) -> None:
    assert plot(cohort).startswith(b"\x89PNG")


def test_the_dice_plot_is_deterministic_and_taller_for_many_structures(cohort: tuple[ScoreRow, ...]) -> None:
    absent = [replace(row, dice=math.nan) if row.structure == "RV" else row for row in cohort]
    many = [replace(row, structure=f"{row.structure}{copy}") for row in cohort for copy in range(4)]
    assert plot_dice(cohort) == plot_dice(cohort) != plot_dice(absent)
    (height, width), (taller, as_wide) = (imread(io.BytesIO(plot_dice(rows))).shape[:2] for rows in (cohort, many))
    assert (as_wide, taller > 1.5 * height) == (width, True)


def test_the_training_plot_skips_epochs_without_validation_and_shows_learned_weights() -> None:
    drawn = plot_training({"fold 0": [*ROWS, {"epoch": 2, "loss": 0.4, "dice": None}]})
    assert drawn == plot_training({"fold 0": [*ROWS, {"epoch": 2, "loss": 0.4, "dice": math.nan}]})
    learned = [row | {"loss_weights": {"pixel": 0.5 + row["epoch"]}} for row in ROWS]
    assert plot_training({"fold 0": ROWS}) != plot_training({"fold 0": learned})
