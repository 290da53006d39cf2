import io
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread

from uumamba.evaluation import PatientIndices, ScoreRow, patient_table
from uumamba.evaluation.plots import plot_dice, plot_ejection_fraction, plot_training, plot_volume_curve

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


EVIL = r"$\frac{$"


@pytest.mark.parametrize(
    "plot",
    [
        lambda rows, name: plot_dice([replace(row, structure=name, phase=name) for row in rows]),
        lambda rows, name: plot_training({name: ROWS, "b": ROWS}),
        lambda rows, name: plot_ejection_fraction(patient_table([replace(row, group=name) for row in rows])),
    ],
    ids=["dice", "training", "ejection fraction"],
)
def test_dollar_signs_in_names_are_drawn_and_not_read_as_a_formula(
    plot: Callable[..., bytes], cohort: tuple[ScoreRow, ...]
) -> None:
    assert plot(cohort, EVIL).startswith(b"\x89PNG")
    assert plot(cohort, "$a$") != plot(cohort, "$b$")


def test_a_plot_of_too_many_boxes_shows_the_lowest(
    cohort: tuple[ScoreRow, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [replace(cohort[0], structure=f"s{n // 5}", phase=f"p{n % 5}", dice=0.9 - 0.01 * n) for n in range(20)]
    monkeypatch.setattr("uumamba.evaluation.plots.MOST_BOXES", 15)
    shown = plot_dice(rows)
    assert imread(io.BytesIO(shown)).shape[0] < 800
    higher, lowest = (replace(rows[place], dice=0.4) for place in (0, -1))
    assert plot_dice([*rows[:-1], lowest]) != shown
    assert plot_dice([rows[0], replace(rows[1], dice=0.88), *rows[2:]]) == shown
    assert plot_dice([higher, *rows[1:]]) != shown


def test_a_volume_curve_marks_its_phases_and_is_drawn_for_any_number_of_frames_and_structures() -> None:
    curves = {"LV": [150.0, 60.0, 120.0], "MYO": [100.0, 100.0, 100.0]}
    plain, marked = plot_volume_curve(curves), plot_volume_curve(curves, phases={"ED": 0, "ES": 1})
    assert len({plain, marked, plot_volume_curve(curves, times_ms=(0.0, 40.0, 80.0))}) == 3
    many = plot_volume_curve({f"s{number}": np.linspace(0, number, 2000).tolist() for number in range(24)})
    assert all(png.startswith(b"\x89PNG") for png in (plain, marked, many))
