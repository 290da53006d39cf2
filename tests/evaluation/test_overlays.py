import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from uumamba.evaluation import ScoreRow
from uumamba.evaluation.colours import STRUCTURE_COLOURS, assign_colours
from uumamba.evaluation.means import case_dice
from uumamba.evaluation.orientation import find_body_order, find_display_order
from uumamba.evaluation.overlays import (
    OverlayCase,
    draw_overlay,
    pick_cases,
    trace_borders,
)
from uumamba.evaluation.projections import draw_projections

ROW_MM, COLUMN_MM, SLICE_MM = 1.0, 2.0, 8.0
RADIUS_MM = 30.0
ONE = {"RV": 1}


def disc_case() -> OverlayCase:
    """Prediction of a bright cylinder of 30 mm radius, without a label.

    As in ACDC, the axes are (column, row, slice) towards left, back and feet.
    """
    columns, rows = np.meshgrid(np.arange(60) * COLUMN_MM - 60, np.arange(120) * ROW_MM - 60, indexing="ij")
    disc = np.repeat((np.hypot(columns, rows) < RADIUS_MM)[:, :, None], 5, axis=2)
    affine = np.diag([-COLUMN_MM, -ROW_MM, -SLICE_MM, 1.0])
    spacing_mm = (COLUMN_MM, ROW_MM, SLICE_MM)
    prediction = disc.astype(np.uint8)
    return OverlayCase("disc", disc.astype(np.float32), prediction, np.zeros_like(prediction), affine, spacing_mm)


def first_panel(case: OverlayCase, *, close_up: bool = False) -> np.ndarray:
    picture = imread(io.BytesIO(draw_overlay(case, ONE, close_up=close_up)))
    return picture[:, : picture.shape[0], :3]


def outline_pixels(panel: np.ndarray) -> np.ndarray:
    """Rows and columns of the pixels in the first structure's colour."""
    return np.argwhere(np.abs(panel - np.array(to_rgb(STRUCTURE_COLOURS[0]))).max(axis=2) < 0.08)


def test_the_outline_of_a_cylinder_is_round_and_on_its_edge_although_voxels_are_not_square() -> None:
    panel = first_panel(disc_case())
    # The image shows the cylinder itself: it is white, all else black.
    bright = np.argwhere(panel.mean(axis=2) > 0.9)
    centre, radius = np.median(bright, axis=0), np.sqrt(len(bright) / np.pi)
    distances = np.hypot(*(outline_pixels(panel) - centre).T)
    voxel = radius * COLUMN_MM / RADIUS_MM
    assert distances.min() > radius - voxel
    assert distances.max() < radius + voxel


@pytest.mark.parametrize("draw", [draw_overlay, partial(draw_projections, vessels=["RV"])], ids=["slices", "vessels"])
def test_a_picture_does_not_depend_on_the_stored_order_of_axes(draw: Callable[..., bytes]) -> None:
    rng = np.random.default_rng(0)
    image, labels = rng.random((20, 24, 4)).astype(np.float32), np.zeros((20, 24, 4), np.uint8)
    labels[3:9, 4:20, :3] = 1
    affine, spacing_mm = np.diag([-1.0, -1.5, 8.0, 1.0]), (1.0, 1.5, 8.0)
    expected = draw(OverlayCase("a", image, labels, labels, affine, spacing_mm), ONE)
    for axes in ((1, 2, 0), (0, 2, 1)):
        arrays = [array.transpose(axes) for array in (image, labels, labels)]
        spacings = (spacing_mm[axes[0]], spacing_mm[axes[1]], spacing_mm[axes[2]])
        assert draw(OverlayCase("a", *arrays, affine[:, [*axes, 3]], spacings), ONE) == expected
    flipped = affine * np.array([-1, 1, 1, 1])
    mirrored = OverlayCase("a", image[::-1], labels[::-1], labels[::-1], flipped, spacing_mm)
    assert draw(mirrored, ONE) == expected


def oblique_affine(degrees: float) -> np.ndarray:
    angle, affine = np.deg2rad(degrees), np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return affine


@pytest.mark.parametrize(
    ("affine", "spacing_mm", "expected"),
    [
        # Stored towards left, back, head: nothing is flipped in the plane.
        (np.diag([-1.0, -1.0, 1.0, 1.0]), (1.4, 1.4, 10.0), ((2, 1, 0), ())),
        # Stored towards right, front, head: both in-plane axes are flipped.
        (np.eye(4), (1.4, 1.4, 10.0), ((2, 1, 0), (1, 2))),
        # Coronal slices: columns to the left, rows to the feet.
        (np.eye(4), (1.4, 10.0, 1.4), ((1, 2, 0), (1, 2))),
        # An oblique stack is shown in the nearest view.
        (oblique_affine(40), (1.0, 1.0, 10.0), ((2, 1, 0), (1, 2))),
    ],
)
def test_slices_are_shown_in_the_radiological_view(
    affine: np.ndarray, spacing_mm: tuple[float, ...], expected: tuple[tuple[int, ...], ...]
) -> None:
    assert find_display_order(affine, spacing_mm) == expected


def test_bodies_are_shown_from_head_to_feet_front_to_back_and_right_to_left() -> None:
    # Stored towards left, back, head: only the last axis is flipped.
    assert find_body_order(np.diag([-1.0, -1.0, 1.0, 1.0])) == ((2, 1, 0), (0,))
    assert find_body_order(np.eye(4)) == ((2, 1, 0), (0, 1, 2))


def test_a_close_up_shows_60_mm_around_the_largest_part() -> None:
    case = disc_case()
    parts = np.zeros_like(case.label)
    parts[40:45, 50:60], parts[10:11, 10:12] = 1, 1  # a part of 10 x 10 mm, and a smaller one
    panel = first_panel(replace(case, prediction=parts, label=parts), close_up=True)
    outline = outline_pixels(panel)
    # The 10 mm of the part are a sixth of the panel's 60 mm, in the middle of the panel.
    assert np.ptp(outline, axis=0) == pytest.approx(len(panel) / 6, rel=0.1)
    assert outline.mean(axis=0) == pytest.approx(len(panel) / 2, rel=0.05)


def test_all_structures_of_the_aorta_have_different_colours() -> None:
    assert len({*assign_colours([f"zone {number}" for number in range(23)]).values()}) == 23


def test_the_border_of_one_voxel_runs_halfway_to_its_neighbours() -> None:
    labels = np.zeros((5, 5), np.uint8)
    labels[3, 1] = 1
    ((name, line),) = trace_borders(labels, ONE)
    assert name == "RV"
    assert {tuple(point) for point in line} == {(0.5, 3.0), (1.5, 3.0), (1.0, 2.5), (1.0, 3.5)}


def test_a_common_border_is_drawn_once_for_the_later_structure() -> None:
    labels = np.ones((9, 9), np.uint8)
    labels[3:6, 3:6] = 2
    lines = list(trace_borders(labels, {"MYO": 1, "LV": 2}))
    assert [name for name, _ in lines] == ["LV", "MYO"]
    assert np.abs(lines[0][1] - 4.0).max() == 1.5
    assert np.abs(lines[1][1] - 4.0).max() == 4.5


def test_a_mask_that_touches_the_edge_has_a_closed_border() -> None:
    ((_, line),) = trace_borders(np.ones((3, 4), np.uint8), ONE)
    np.testing.assert_array_equal(line[0], line[-1])


def test_empty_masks_have_no_outline_and_a_close_up_of_the_slice() -> None:
    case = disc_case()
    empty = replace(case, image=np.full_like(case.image, 7), prediction=case.label)  # no contrast
    assert not len(outline_pixels(first_panel(empty)))
    assert draw_overlay(empty, ONE, close_up=True) == draw_overlay(empty, ONE)


def test_best_median_and_worst_case_are_picked_by_mean_dice(cohort: tuple[ScoreRow, ...]) -> None:
    ranked = sorted((dice, case_id) for case_id, dice in case_dice(cohort).items())
    # Case b_7 is perfect; b_1 and c_8 each lack or invent an RV, and b_1's MYO is worse.
    assert pick_cases(cohort) == {"best": "b_7", "median": ranked[2][1], "worst": ranked[0][1]}
    assert ranked[0][1] in {"b_1", "c_8"}


@pytest.mark.parametrize(
    ("case_ids", "picked"), [({"a_1"}, {"best": "a_1"}), ({"a_1", "b_7"}, {"best": "b_7", "worst": "a_1"}), ({}, {})]
)
def test_no_case_is_picked_twice(case_ids: set[str], picked: dict[str, str], cohort: tuple[ScoreRow, ...]) -> None:
    assert pick_cases([row for row in cohort if row.case_id in case_ids]) == picked
