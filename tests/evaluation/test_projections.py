import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from uumamba.evaluation.overlays import OverlayCase
from uumamba.evaluation.projections import ERROR_COLOUR, VIEWS, _project, _View, draw_projections

SPACING_MM = (0.5, 1.0, 2.0)
TREE = np.zeros((60, 40, 20), np.uint8)
TREE[20:26, 10:14, 2:18] = 1
TRUNK = TREE.copy()
TREE[26:50, 10:14, 9:11] = 1  # a branch
NOTHING = np.zeros_like(TREE)


def red_pixels(prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    image, affine = np.zeros(label.shape, np.float32), np.diag([*SPACING_MM, 1.0])
    case = OverlayCase("a", image, prediction, label, affine, SPACING_MM)
    picture: np.ndarray = imread(io.BytesIO(draw_projections(case, {"coronary": 1}, ["coronary"])))
    return np.argwhere(np.abs(picture[..., :3] - np.array(to_rgb(ERROR_COLOUR))).max(axis=2) < 0.02)


@pytest.mark.parametrize(("prediction", "label"), [(TREE, np.roll(TREE, 2, axis=0)), (TREE, TREE), (NOTHING, NOTHING)])
def test_parts_within_2_mm_are_not_red(prediction: np.ndarray, label: np.ndarray) -> None:
    assert not len(red_pixels(prediction, label))


def test_a_missed_branch_is_red_in_the_label_and_an_invented_one_in_the_prediction() -> None:
    missed, invented = red_pixels(TRUNK, TREE), red_pixels(TREE, TRUNK)
    assert len(red_pixels(NOTHING, TREE)) > len(missed) == len(invented) > 100
    # The label is drawn above or to the left of the prediction.
    assert (missed.mean(axis=0) < invented.mean(axis=0)).any()


@pytest.mark.parametrize(("view", "nearest"), [(VIEWS[0], (1, 0, 1)), (VIEWS[1], (1, 1, 2)), (VIEWS[2], (2, 1, 1))])
def test_the_nearest_vessel_hides_the_others(view: _View, nearest: tuple[int, int, int]) -> None:
    labels = np.zeros((3, 3, 3), np.uint8)  # (z, y, x): head to feet, front to back, right to left
    labels[1, 1, 1], labels[nearest] = 1, 2
    palette = np.zeros((256, 3), np.float32)
    palette[1], palette[2] = (1, 0, 0), (0, 1, 0)
    panel = _project(labels, view, palette, np.ones(3), "label")
    np.testing.assert_array_equal(panel.picture[1, 1], palette[2])
