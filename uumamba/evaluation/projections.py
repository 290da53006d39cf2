"""Projections of a vessel tree in label and prediction, from three directions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from uumamba.evaluation.colours import assign_colours
from uumamba.evaluation.orientation import find_body_order
from uumamba.evaluation.overlays import OverlayCase, draw_png, reorient
from uumamba.evaluation.scoring import NSD_TOLERANCE_MM
from uumamba.metrics.box import bounding_box
from uumamba.runtime.figures import Figure, draw_style, to_rgb
from uumamba.types import LabelMap

FIGURE_INCHES = (10.3, 7.5)
VESSEL_MARGIN_MM = 6.0
PANEL_GAP_MM = 4.0
SHADE = 0.6
"""Relative darkening from the nearest to the farthest voxel."""
ERROR_COLOUR = "#FF4B33"
_ERROR_VALUE = 255


@dataclass(frozen=True)
class _View:
    """Viewing direction along an axis of ``(z, y, x)``.

    ``is_reversed`` is true if the last index of the axis is the nearest.
    """

    name: str
    axis: int
    is_reversed: bool


# Arrays run from head to feet, front to back, right to left: the patient's left is on the right of each picture.
VIEWS = (_View("from the front", 1, False), _View("from the left", 2, True), _View("from the feet", 0, True))


@dataclass(frozen=True)
class _Panel:
    """Picture of one label map from one direction, with its size."""

    name: str
    picture: NDArray[np.float32]
    height_mm: float
    width_mm: float


@draw_style()
def draw_projections(
    case: OverlayCase,
    structures: Mapping[str, int],
    vessels: Sequence[str],
    *,
    colours: Mapping[str, str] | None = None,
) -> bytes:
    """Draw the vessels of label and prediction, as PNG.

    The views are from the front, from the left and from the feet. Each ray shows its first vessel, darker with
    distance. Of a single vessel, parts of the label more than 2 mm from the prediction, and parts of the prediction
    more than 2 mm from the label, are red and always visible: misses in the picture of the label, false positives in
    that of the prediction.

    Args:
        case: native arrays; the image is not used.
        structures: label value of each structure, which chooses the colours.
        vessels: names of the vessels to draw.
        colours: as for :func:`uumamba.evaluation.overlays.assign_colours`.
    """
    label, prediction, spacing_mm = _crop_vessels(case, [structures[name] for name in vessels])
    assigned = assign_colours(list(structures), colours)
    colour_of = {value: to_rgb(assigned[name]) for name, value in structures.items()}
    if len(vessels) == 1:
        colour_of[_ERROR_VALUE] = to_rgb(ERROR_COLOUR)
        label, prediction = (_mark_errors(*pair, spacing_mm) for pair in ((label, prediction), (prediction, label)))
    palette = np.zeros((256, 3), np.float32)
    palette[list(colour_of)] = list(colour_of.values())
    return _draw_panels(
        [
            [_project(labels, view, palette, spacing_mm, name) for view in VIEWS]
            for name, labels in {"label": label, "prediction": prediction}.items()
        ]
    )


def _crop_vessels(case: OverlayCase, values: Sequence[int]) -> tuple[LabelMap, LabelMap, NDArray[np.float64]]:
    """Return the vessels of label and prediction, and the spacing.

    Label maps have axes ``(z, y, x)`` and hold 0 for other structures. They are cropped to one box around all vessels,
    with a margin.
    """
    order, flips = find_body_order(case.affine)
    spacing_mm = np.array([case.spacing_mm[axis] for axis in order])
    reordered = (reorient(labels, order, flips) for labels in (case.label, case.prediction))
    kept = [np.where(np.isin(labels, values), labels, 0) for labels in reordered]
    box = bounding_box((kept[0] > 0) | (kept[1] > 0))
    margin = [(int(np.ceil(VESSEL_MARGIN_MM / length)),) * 2 for length in spacing_mm]
    label, prediction = (np.pad(labels[box], margin) for labels in kept)
    return label, prediction, spacing_mm


def _mark_errors(labels: LabelMap, others: LabelMap, spacing_mm: NDArray[np.float64]) -> LabelMap:
    """Mark voxels farther than the tolerance from all voxels of ``others``."""
    voxels, targets = np.argwhere(labels), np.argwhere(others)
    if not len(targets):
        return np.where(labels, np.uint8(_ERROR_VALUE), labels)
    near = cKDTree(targets * spacing_mm).query(voxels * spacing_mm, distance_upper_bound=NSD_TOLERANCE_MM)[0]
    marked = labels.copy()
    marked[tuple(voxels[np.isinf(near)].T)] = _ERROR_VALUE
    return marked


def _project(
    labels: LabelMap, view: _View, palette: NDArray[np.float32], spacing_mm: NDArray[np.float64], name: str
) -> _Panel:
    """Draw the first vessel on each ray, shaded by distance.

    Marked voxels are always visible. ``palette`` holds the colour of each label value, ``(256, 3)``.
    """
    if view.is_reversed:
        labels = np.flip(labels, view.axis)
    first = (labels > 0).argmax(axis=view.axis)
    value = np.take_along_axis(labels, np.expand_dims(first, view.axis), view.axis).squeeze(view.axis)
    light = 1 - SHADE * first / max(labels.shape[view.axis] - 1, 1)
    picture = (palette[value] * light[..., None]).astype(np.float32)
    picture[(labels == _ERROR_VALUE).any(axis=view.axis)] = palette[_ERROR_VALUE]
    return _Panel(f"{name}, {view.name}", picture, *np.delete(labels.shape * spacing_mm, view.axis).tolist())


def _draw_panels(rows: Sequence[Sequence[_Panel]]) -> bytes:
    """Draw panels at one scale, each centred in a grid cell.

    Label and prediction have a row each, or the two panels of each view are side by side in one row, whichever grid has
    the larger scale.
    """
    pairs = [panel for pair in zip(*rows, strict=True) for panel in pair]
    grid = max(rows, [pairs], key=lambda grid: _fit_grid(grid)[0])
    inches_per_mm, widths_mm, heights_mm = _fit_grid(grid)
    size = (FIGURE_INCHES[0], inches_per_mm * _add_gaps(heights_mm))
    margin = (1 - inches_per_mm * _add_gaps(widths_mm) / size[0]) / 2
    figure = Figure(figsize=size, dpi=130, facecolor="black")
    cells = figure.subplots(
        len(heights_mm),
        len(widths_mm),
        squeeze=False,
        width_ratios=widths_mm,
        height_ratios=heights_mm,
        gridspec_kw={
            "left": margin,
            "right": 1 - margin,
            "bottom": 0.0,
            "top": 1.0,
            "wspace": PANEL_GAP_MM / np.mean(widths_mm),
            "hspace": PANEL_GAP_MM / np.mean(heights_mm),
        },
    )
    background = {"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1.5}
    for axes, panel in zip(cells.flat, (panel for row in grid for panel in row), strict=True):
        axes.imshow(panel.picture, interpolation="nearest", extent=(0.0, panel.width_mm, 0.0, panel.height_mm))
        axes.set_axis_off()
        axes.text(
            0.02, 0.99, panel.name, transform=axes.transAxes, color="white", fontsize=9, va="top", bbox=background
        )
    return draw_png(figure, background="black")


def _fit_grid(rows: Sequence[Sequence[_Panel]]) -> tuple[float, list[float], list[float]]:
    """Return the largest scale at which the figure holds a grid.

    The scale is in inches per millimetre; column widths and row heights follow, in millimetres.
    """
    widths_mm = [max(panel.width_mm for panel in column) for column in zip(*rows, strict=True)]
    heights_mm = [max(panel.height_mm for panel in row) for row in rows]
    scale = min(FIGURE_INCHES[0] / _add_gaps(widths_mm), FIGURE_INCHES[1] / _add_gaps(heights_mm))
    return scale, widths_mm, heights_mm


def _add_gaps(lengths_mm: Sequence[float]) -> float:
    return sum(lengths_mm) + PANEL_GAP_MM * (len(lengths_mm) - 1)
