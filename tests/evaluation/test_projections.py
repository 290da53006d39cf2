import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from uumamba.evaluation.overlays import COLOURS, OverlayCase
from uumamba.evaluation.projections import APART_COLOUR, VIEWS, _project, _View, draw_projections

VESSEL = {"coronary": 1}
SPACING_MM = (0.5, 1.0, 2.0)


def tree() -> np.ndarray:
    """A trunk with one branch, in voxels of 0.5 x 1 x 2 mm."""
    labels = np.zeros((60, 40, 20), np.uint8)
    labels[20:26, 10:14, 2:18] = 1
    labels[26:50, 10:14, 9:11] = 1
    return labels


def case(prediction: np.ndarray, label: np.ndarray) -> OverlayCase:
    affine = np.diag([*SPACING_MM, 1.0])
    return OverlayCase("a", np.zeros(label.shape, np.float32), prediction, label, affine, SPACING_MM)


def picture(drawn: OverlayCase, structures: dict[str, int] = VESSEL) -> np.ndarray:
    array: np.ndarray = imread(io.BytesIO(draw_projections(drawn, structures, list(structures))))
    return array[..., :3]


def pixels(image: np.ndarray, colour: str) -> np.ndarray:
    return np.argwhere(np.abs(image - np.array(to_rgb(colour))).max(axis=2) < 0.02)


def test_what_agrees_within_2_mm_has_no_red() -> None:
    assert not len(pixels(picture(case(tree(), np.roll(tree(), 2, axis=0))), APART_COLOUR))


def test_a_branch_that_was_missed_is_red_in_the_label_and_one_invented_in_the_prediction() -> None:
    trunk = tree()
    trunk[26:] = 0
    missed, invented = picture(case(trunk, tree())), picture(case(tree(), trunk))
    assert len(pixels(missed, APART_COLOUR)) == len(pixels(invented, APART_COLOUR)) > 100
    # The label is drawn above or to the left of the prediction.
    rows = [pixels(image, APART_COLOUR) for image in (missed, invented)]
    assert (rows[0].mean(axis=0) < rows[1].mean(axis=0)).any()


def test_a_prediction_of_nothing_leaves_the_whole_label_red() -> None:
    image = picture(case(np.zeros_like(tree()), tree()))
    assert len(pixels(image, APART_COLOUR)) > 100
    assert not len(pixels(image, COLOURS[0]))


def test_two_empty_masks_are_drawn_without_a_warning() -> None:
    nothing = np.zeros_like(tree())
    assert draw_projections(case(nothing, nothing), VESSEL, ["coronary"]).startswith(b"\x89PNG")


@pytest.mark.parametrize(("view", "seen"), [(VIEWS[0], "front"), (VIEWS[1], "left"), (VIEWS[2], "feet")])
def test_the_nearest_vessel_hides_the_others(view: _View, seen: str) -> None:
    labels = np.zeros((3, 3, 3), np.uint8)  # (z, y, x): head to feet, front to back, right to left
    labels[1, 1, 1] = 1
    nearest = {"front": (1, 0, 1), "left": (1, 1, 2), "feet": (2, 1, 1)}[seen]
    labels[nearest] = 2
    colours = {1: (1.0, 0.0, 0.0), 2: (0.0, 1.0, 0.0)}
    np.testing.assert_array_equal(_project(labels, view, colours)[1, 1], colours[2])
