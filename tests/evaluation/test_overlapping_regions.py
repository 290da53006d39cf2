"""Scores and pictures of overlapping regions and of ignored voxels."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from uumamba.evaluation import EvaluationPair, evaluate
from uumamba.evaluation.colours import assign_colours
from uumamba.evaluation.overlays import OverlayCase, draw_overlay, trace_borders
from uumamba.evaluation.plots import plot_dice

SPACING_MM = (1.0, 1.0, 2.0)
REGIONS = {"whole": (1, 2), "core": (2,)}


@pytest.fixture
def label() -> np.ndarray:
    label = np.zeros((12, 12, 4), np.uint8)
    label[2:8, 2:8, 1:3], label[4:6, 4:6, 1:3] = 1, 2
    return label


@pytest.fixture
def pair(label: np.ndarray) -> EvaluationPair:
    prediction = label.copy()
    prediction[4:6, 4:6, 1] = 1
    return EvaluationPair("a", "a", prediction, label, SPACING_MM)


def test_each_region_is_one_row_with_the_scores_of_all_its_values(pair: EvaluationPair) -> None:
    scores = evaluate([pair], structures=REGIONS, vessel_structures=["whole", "core"])
    assert [row.structure for row in scores.rows] == ["whole", "core"]
    for row, masks in zip(
        scores.rows, [(pair.prediction > 0, pair.label > 0), (pair.prediction == 2, pair.label == 2)], strict=True
    ):
        one = replace(pair, prediction=masks[0].astype(np.uint8), label=masks[1].astype(np.uint8))
        (alone,) = evaluate([one], structures={row.structure: 1}, vessel_structures=[row.structure]).rows
        assert row == alone
    assert scores.rows[1].dice == pytest.approx(2 * 4 / (4 + 8))
    assert scores.trees[0] == replace(scores.rows[0], structure="whole tree"), "no voxel of the tree counts twice"


def test_ignored_voxels_are_background_in_label_and_prediction(pair: EvaluationPair, label: np.ndarray) -> None:
    ignored = np.zeros(label.shape, bool)
    ignored[:5] = True
    given = replace(pair, label=np.where(ignored, 9, label).astype(np.uint8))
    cut = replace(
        pair,
        prediction=np.where(ignored, 0, pair.prediction).astype(np.uint8),
        label=np.where(ignored, 0, label).astype(np.uint8),
    )
    structures = {"ring": 1, "core": 2}
    assert evaluate([given], structures=structures, ignore_value=9) == evaluate([cut], structures=structures)
    assert evaluate([given], structures=structures) != evaluate([cut], structures=structures)


def test_borders_of_regions_are_those_of_all_their_values(label: np.ndarray) -> None:
    def box(lines: Any) -> dict[str, tuple[float, float]]:
        return {name: (float(line.min()), float(line.max())) for name, line in lines}

    found = box(trace_borders(label[..., 1], REGIONS))
    assert found == {"whole": (1.5, 7.5), "core": (3.5, 5.5)}


def test_chosen_colours_are_those_of_overlays_and_plots(pair: EvaluationPair, label: np.ndarray) -> None:
    assert assign_colours(["whole", "core"], {"core": "#ff0000", "other": "#00ff00"}) == {
        "whole": assign_colours(["whole"])["whole"],
        "core": "#ff0000",
    }
    case = OverlayCase("a", label.astype(np.float32), label, label, np.diag([1.0, 1, 2, 1]), SPACING_MM)
    rows = evaluate([pair], structures=REGIONS).rows
    default = assign_colours(["whole", "core"])
    for draw in (
        lambda colours: draw_overlay(case, REGIONS, colours=colours),
        lambda colours: plot_dice(rows, colours=colours),
    ):
        assert draw(None) == draw({}) == draw(default) != draw({"core": "#ff0000"})
