"""Projections: a vessel tree from three sides, label beside prediction, nearest vessel in front."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from uumamba.evaluation.orientation import body_order
from uumamba.evaluation.overlays import OverlayCase, colours_of, draw_png, reorient
from uumamba.evaluation.scoring import NSD_TOLERANCE_MM
from uumamba.metrics.box import bounding_box
from uumamba.types import LabelMap

FIGURE_INCHES = (10.3, 7.5)
MARGIN_MM = 6.0
GAP_MM = 4.0
SHADE = 0.6
"""Relative darkening from the nearest to the farthest voxel."""
APART_COLOUR = "#FF4B33"
_APART = 255

Picture = NDArray[np.float32]
Colour = tuple[float, float, float]
Lengths = NDArray[np.float64]


@dataclass(frozen=True)
class _View:
    """Viewing direction: axis of ``(z, y, x)`` along the rays, and which end is near."""

    name: str
    axis: int
    near_is_last: bool


# Arrays run from head to feet, front to back, right to left: the patient's left is on the right of each picture.
VIEWS = (_View("from the front", 1, False), _View("from the left", 2, True), _View("from the feet", 0, True))


def draw_projections(case: OverlayCase, structures: Mapping[str, int], vessels: Sequence[str]) -> bytes:
    """Draw the vessels of label and prediction from the front, the left and the feet, as PNG.

    Each ray shows its first vessel, darker with distance. Of a single vessel, parts of the label more than 2 mm from
    the prediction, and parts of the prediction more than 2 mm from the label, are red and hidden by nothing: misses in
    the picture of the label, false positives in that of the prediction.

    Args:
        case: native arrays; the image is not used.
        structures: label value of each structure, which chooses the colours.
        vessels: names of the vessels to draw.
    """
    label, prediction, spacing_mm = _crop(case, [structures[name] for name in vessels])
    colours = {value: to_rgb(colours_of(list(structures))[name]) for name, value in structures.items()}
    if len(vessels) == 1:
        colours[_APART] = to_rgb(APART_COLOUR)
        label, prediction = (_mark_apart(*pair, spacing_mm) for pair in ((label, prediction), (prediction, label)))
    rows = [
        [_Panel.project(labels, view, colours, spacing_mm, name=what) for view in VIEWS]
        for what, labels in (("label", label), ("prediction", prediction))
    ]
    return _draw(rows)


@dataclass(frozen=True)
class _Panel:
    """Picture with name and size."""

    name: str
    picture: Picture
    width_mm: float
    height_mm: float

    @classmethod
    def project(
        cls, labels: LabelMap, view: _View, colours: Mapping[int, Colour], spacing_mm: Lengths, *, name: str
    ) -> "_Panel":
        """Project a label map along one direction."""
        row, column = (axis for axis in range(3) if axis != view.axis)
        height_mm, width_mm = (float(labels.shape[axis] * spacing_mm[axis]) for axis in (row, column))
        return cls(f"{name}, {view.name}", _project(labels, view, colours), width_mm, height_mm)


@dataclass(frozen=True)
class _Layout:
    """Rows of panels, each centred, at one scale."""

    rows: Sequence[Sequence[_Panel]]

    @property
    def width_mm(self) -> float:
        return max(_row_size_mm(row)[0] for row in self.rows)

    @property
    def height_mm(self) -> float:
        return sum(_row_size_mm(row)[1] for row in self.rows) + GAP_MM * (len(self.rows) - 1)

    @property
    def inches_per_mm(self) -> float:
        """Largest scale at which the figure holds all rows."""
        return min(FIGURE_INCHES[0] / self.width_mm, FIGURE_INCHES[1] / self.height_mm)

    def places_mm(self) -> Iterator[tuple[_Panel, float, float]]:
        """Yield each panel with its left and lower edge."""
        bottom_mm = self.height_mm
        for row in self.rows:
            row_width_mm, row_height_mm = _row_size_mm(row)
            bottom_mm -= row_height_mm
            left_mm = (self.width_mm - row_width_mm) / 2
            for panel in row:
                yield panel, left_mm, bottom_mm + (row_height_mm - panel.height_mm) / 2
                left_mm += panel.width_mm + GAP_MM
            bottom_mm -= GAP_MM


def _row_size_mm(row: Sequence[_Panel]) -> tuple[float, float]:
    width_mm = sum(panel.width_mm for panel in row) + GAP_MM * (len(row) - 1)
    return width_mm, max(panel.height_mm for panel in row)


def _draw(rows: Sequence[Sequence[_Panel]]) -> bytes:
    """Draw label and prediction in a row each, or each view's pair side by side, in the layout of the larger scale."""
    pairs = [panel for both in zip(*rows, strict=True) for panel in both]
    layout = max(_Layout(rows), _Layout([pairs]), key=lambda each: each.inches_per_mm)
    whole_mm = (FIGURE_INCHES[0] / layout.inches_per_mm, layout.height_mm)
    margin_mm = (whole_mm[0] - layout.width_mm) / 2
    size = (FIGURE_INCHES[0], layout.inches_per_mm * layout.height_mm)
    figure = Figure(figsize=size, dpi=130, facecolor="black")
    background = {"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1.5}
    style: dict[str, Any] = {"color": "white", "fontsize": 9, "va": "top", "bbox": background}
    for panel, left_mm, bottom_mm in layout.places_mm():
        place_mm = (margin_mm + left_mm, bottom_mm, panel.width_mm, panel.height_mm)
        axes = figure.add_axes(tuple(np.divide(place_mm, whole_mm * 2)))
        axes.imshow(panel.picture, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        axes.text(0.02, 0.99, panel.name, transform=axes.transAxes, **style)
    return draw_png(figure, background="black")


def _crop(case: OverlayCase, values: Sequence[int]) -> tuple[LabelMap, LabelMap, Lengths]:
    """Return label and prediction ``(z, y, x)`` of the vessels in a common box with a margin, and the spacing."""
    order, flips = body_order(case.affine)
    spacing_mm = np.array([case.spacing_mm[axis] for axis in order])
    turned = (reorient(labels, order, flips) for labels in (case.label, case.prediction))
    kept = [np.where(np.isin(labels, values), labels, 0) for labels in turned]
    box = bounding_box((kept[0] > 0) | (kept[1] > 0))
    margin = [(int(np.ceil(MARGIN_MM / length)),) * 2 for length in spacing_mm]
    label, prediction = (np.pad(labels[box], margin) for labels in kept)
    return label, prediction, spacing_mm


def _mark_apart(labels: LabelMap, others: LabelMap, spacing_mm: Lengths) -> LabelMap:
    """Mark voxels of the labels farther than the tolerance from all voxels of the others."""
    voxels, targets = np.argwhere(labels), np.argwhere(others)
    if not len(targets):
        return np.where(labels, np.uint8(_APART), labels)
    near = cKDTree(targets * spacing_mm).query(voxels * spacing_mm, distance_upper_bound=NSD_TOLERANCE_MM)[0]
    marked = labels.copy()
    marked[tuple(voxels[np.isinf(near)].T)] = _APART
    return marked


def _project(labels: LabelMap, view: _View, colours: Mapping[int, Colour]) -> Picture:
    """Return the colour of the first vessel on each ray, shaded by distance; marked voxels are always visible."""
    if view.near_is_last:
        labels = np.flip(labels, view.axis)
    first = (labels > 0).argmax(axis=view.axis)
    value = np.take_along_axis(labels, np.expand_dims(first, view.axis), view.axis).squeeze(view.axis)
    palette = np.zeros((256, 3), np.float32)
    palette[list(colours)] = list(colours.values())
    light = 1 - SHADE * first / max(labels.shape[view.axis] - 1, 1)
    picture: Picture = (palette[value] * light[..., None]).astype(np.float32)
    picture[(labels == _APART).any(axis=view.axis)] = palette[_APART]
    return picture
