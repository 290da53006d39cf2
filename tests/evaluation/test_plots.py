import io
import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread

from uumamba.evaluation import PatientIndices, ScoreRow, patient_table
from uumamba.evaluation.plots import plot_dice, plot_ejection_fraction, plot_training


def picture(png: bytes) -> np.ndarray:
    array: np.ndarray = imread(io.BytesIO(png))
    return array


def test_the_dice_plot_is_the_same_on_every_call(cohort: tuple[ScoreRow, ...]) -> None:
    assert np.array_equal(picture(plot_dice(cohort)), picture(plot_dice(cohort)))


def test_the_dice_plot_bears_structures_without_any_score(cohort: tuple[ScoreRow, ...]) -> None:
    absent = [replace(row, dice=math.nan) if row.structure == "RV" else row for row in cohort]
    assert not np.array_equal(picture(plot_dice(absent)), picture(plot_dice(cohort)))


def test_the_boxes_of_many_structures_lie_below_each_other(cohort: tuple[ScoreRow, ...]) -> None:
    many = [replace(row, structure=f"{row.structure}{copy}") for row in cohort for copy in range(8)]
    (height, width), (taller, as_wide) = (picture(plot_dice(rows)).shape[:2] for rows in (cohort, many))
    assert as_wide == width
    assert taller > 2 * height


def test_the_training_plot_skips_epochs_without_validation() -> None:
    rows = [{"epoch": 0, "loss": 1.0}, {"epoch": 1, "loss": 0.5, "dice": 0.4}, {"epoch": 2, "loss": 0.4, "dice": None}]
    with_gaps = picture(plot_training({"fold 0": rows}))
    assert np.array_equal(with_gaps, picture(plot_training({"fold 0": [*rows[:2], rows[2] | {"dice": math.nan}]})))


def test_the_training_plot_shows_learned_loss_weights_where_there_are_any() -> None:
    plain = [{"epoch": epoch, "loss": 1.0} for epoch in range(3)]
    learned = [row | {"loss_weights": {"region": 1.0, "pixel": 0.5 + row["epoch"]}} for row in plain]
    assert not np.array_equal(picture(plot_training({"fold 0": plain})), picture(plot_training({"fold 0": learned})))


@pytest.mark.parametrize("folds", [{}, {"fold 0": [{"epoch": 0, "loss": math.inf}]}])
def test_the_training_plot_bears_having_nothing_to_show(folds: dict[str, list[dict[str, float]]]) -> None:
    assert picture(plot_training(folds)).size


def test_the_ejection_fraction_plot_bears_an_undefined_fraction(cohort: tuple[ScoreRow, ...]) -> None:
    assert picture(plot_ejection_fraction(patient_table(cohort), "rv_ef_percent")).size


def test_the_ejection_fraction_plot_of_one_patient_has_no_limits() -> None:
    one = [PatientIndices("a", None, {"lv_ef_percent": 50.0}, {"lv_ef_percent": 55.0})]
    assert picture(plot_ejection_fraction(one)).size
