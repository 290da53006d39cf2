"""Previews: outlines in true proportions, seen as pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from uumamba.evaluation.colours import assign_colours
from uumamba.evaluation.preview_image import MARGIN_MM, PANEL, PreviewFrame, draw_preview

COLOURS = {"LV": "#00ff00", "RV": "#ff0000"}
CLASSES = {"LV": 1, "RV": 2}
SPACING = (2.0, 1.0, 8.0)
AFFINE = np.diag([-2.0, -1.0, 8.0, 1.0])
"""Axes to the left, back and head, as in ACDC."""


def draw(label: np.ndarray, frames: int = 1, **given: object) -> np.ndarray:
    image = np.random.default_rng(0).normal(size=label.shape).astype(np.float32)
    titled = [PreviewFrame("ED" if frames > 1 else "", image, label)] * frames
    options = {"affine": AFFINE, "spacing_mm": SPACING, "classes": CLASSES, "colours": COLOURS} | given
    return np.asarray(Image.open(io.BytesIO(draw_preview(titled, **options))))


def find_colour(picture: np.ndarray, name: str) -> np.ndarray:
    return np.argwhere((picture == tuple(bytes.fromhex(COLOURS[name][1:]))).all(axis=-1))


def test_a_disc_is_round_whatever_the_spacing() -> None:
    columns, rows = np.meshgrid(np.arange(60) * 2.0 - 60, np.arange(120) * 1.0 - 60, indexing="ij")
    label = np.repeat((np.hypot(columns, rows) < 30)[:, :, None], 6, axis=2).astype(np.uint8)
    found = find_colour(draw(label)[:PANEL, :PANEL], "LV")
    height, width = np.ptp(found, axis=0)
    expected = PANEL * 60 / (2 * 29.5 + 2 * MARGIN_MM)
    assert (height, width) == pytest.approx((expected, expected), rel=0.05)


def test_the_patients_left_is_on_the_right_and_the_back_is_below() -> None:
    label = np.zeros((40, 40, 3), np.uint8)
    label[25:30, 10:20] = 1  # towards the first axis' end, the left
    label[5:10, 10:20] = 2
    label[5:10, 30:35] = 2
    panel = draw(label)[:PANEL, :PANEL]
    assert find_colour(panel, "LV")[:, 1].min() > find_colour(panel, "RV")[:, 1].max()
    assert find_colour(panel, "RV")[:, 0].max() > find_colour(panel, "LV")[:, 0].max()


def test_an_outline_is_on_the_inside_and_closed_at_the_edge() -> None:
    label = np.ones((40, 40, 1), np.uint8)
    panel = draw(label)[:PANEL]
    found = find_colour(panel, "LV")
    height, width = panel.shape[:2]
    assert 0 < len(found) < 4 * 2 * max(height, width)


def test_frames_of_a_cine_are_rows_and_a_still_scan_has_six_slices() -> None:
    label = np.zeros((40, 40, 12), np.uint8)
    label[10:20, 10:20] = 1
    still, cine = draw(label), draw(label, frames=2)
    assert still.shape == cine.shape
    assert (still.shape[1], still.shape[0] > 2 * PANEL) == (3 * PANEL + 8, True)


@pytest.mark.parametrize("shape", [(1, 1, 1), (40, 1, 1), (7, 9, 1), (5, 6, 2)])
def test_any_grid_without_structures_is_drawn(shape: tuple[int, ...]) -> None:
    assert draw(np.zeros(shape, np.uint8)).shape[2] == 3
    flat = PreviewFrame("", np.full(shape, 7, np.int16), np.zeros(shape, np.uint8))
    png = draw_preview([flat], affine=AFFINE, spacing_mm=SPACING, classes=CLASSES, colours=COLOURS)
    assert png.startswith(b"\x89PNG")


def test_many_structures_with_any_name_fit() -> None:
    names = [f"structure {number} – « \u5fc3 »" + "x" * number for number in range(254)]
    label = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    label[label == 255] = 0
    classes = {name: 1 + number for number, name in enumerate(names)}
    picture = draw(label, classes=classes, colours=assign_colours(names))
    assert picture.shape[0] < 1.3 * 2 * PANEL
