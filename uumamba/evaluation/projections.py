"""Projections: a vessel tree seen from three sides, label beside prediction, the nearest vessel in front."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from uumamba.evaluation.orientation import body_order
from uumamba.evaluation.overlays import OverlayCase, colours_of
from uumamba.evaluation.scoring import NSD_TOLERANCE_MM
from uumamba.metrics.box import bounding_box
from uumamba.types import LabelMap

FIGURE_INCHES = (10.3, 7.5)
MARGIN_MM = 6.0
GAP_MM = 4.0
SHADE = 0.6
"""How much darker the farthest voxel is than the nearest."""
APART_COLOUR = "#FF4B33"
_APART = 255

Picture = NDArray[np.float32]
Colour = tuple[float, float, float]
Lengths = NDArray[np.float64]


@dataclass(frozen=True)
class _View:
    """A direction to look along: the axis of ``(z, y, x)`` that is seen end on, and which of its ends is near."""

    name: str
    axis: int
    near_is_last: bool


# Arrays run from head to feet, front to back, and the patient's right to left: left is on the right of each picture.
VIEWS = (_View("from the front", 1, False), _View("from the left", 2, True), _View("from the feet", 0, True))


def draw_projections(case: OverlayCase, structures: Mapping[str, int], vessels: Sequence[str]) -> bytes:
    """Draw the vessels of label and prediction as seen from the front, the left and the feet, as PNG.

    Each ray shows the first vessel that it meets, the darker the farther away. Where there is one structure, parts of
    the label that lie more than 2 mm from the prediction, and parts of the prediction that lie so far from the label,
    shine through in red: what was missed stands in the label's picture, what was invented in the prediction's.

    Args:
        case: native arrays; the image is not looked at.
        structures: label value of each structure, which chooses the colours.
        vessels: those to draw.
    """
    label, prediction, spacing_mm = _turned(case, [structures[name] for name in vessels])
    colours = {value: to_rgb(colours_of(list(structures))[name]) for name, value in structures.items()}
    if len(vessels) == 1:
        colours[_APART] = to_rgb(APART_COLOUR)
        label, prediction = (_mark_apart(*pair, spacing_mm) for pair in ((label, prediction), (prediction, label)))
    rows = [
        [_Panel.of(labels, view, colours, spacing_mm, name=what) for view in VIEWS]
        for what, labels in (("label", label), ("prediction", prediction))
    ]
    return _draw(_best_layout(rows))


@dataclass(frozen=True)
class _Panel:
    """One picture with its name and its size."""

    name: str
    picture: Picture
    width_mm: float
    height_mm: float

    @classmethod
    def of(
        cls, labels: LabelMap, view: _View, colours: Mapping[int, Colour], spacing_mm: Lengths, *, name: str
    ) -> "_Panel":
        """What is seen of a label map from one side."""
        row, column = (axis for axis in range(3) if axis != view.axis)
        height_mm, width_mm = (float(labels.shape[axis] * spacing_mm[axis]) for axis in (row, column))
        return cls(f"{name}, {view.name}", _project(labels, view, colours), width_mm, height_mm)


@dataclass(frozen=True)
class _Layout:
    """Rows of panels, each centred, all of one scale."""

    rows: Sequence[Sequence[_Panel]]

    @property
    def width_mm(self) -> float:
        return max(self.row_width_mm(row) for row in self.rows)

    @property
    def height_mm(self) -> float:
        return sum(self.row_height_mm(row) for row in self.rows) + GAP_MM * (len(self.rows) - 1)

    @property
    def inches_a_mm(self) -> float:
        """As large as the figure can hold."""
        return min(FIGURE_INCHES[0] / self.width_mm, FIGURE_INCHES[1] / self.height_mm)

    @staticmethod
    def row_width_mm(row: Sequence[_Panel]) -> float:
        return sum(panel.width_mm for panel in row) + GAP_MM * (len(row) - 1)

    @staticmethod
    def row_height_mm(row: Sequence[_Panel]) -> float:
        return max(panel.height_mm for panel in row)

    def places_mm(self) -> Iterator[tuple[_Panel, float, float]]:
        """Each panel with the distances of its left and lower edges from the figure's."""
        bottom_mm = self.height_mm
        for row in self.rows:
            bottom_mm -= self.row_height_mm(row)
            left_mm = (self.width_mm - self.row_width_mm(row)) / 2
            for panel in row:
                yield panel, left_mm, bottom_mm + (self.row_height_mm(row) - panel.height_mm) / 2
                left_mm += panel.width_mm + GAP_MM
            bottom_mm -= GAP_MM


def _best_layout(rows: Sequence[Sequence[_Panel]]) -> _Layout:
    """A row for the label and one for the prediction, or each view's pair side by side: whichever is drawn larger."""
    pairs = [panel for both in zip(*rows, strict=True) for panel in both]
    return max(_Layout(rows), _Layout([pairs]), key=lambda layout: layout.inches_a_mm)


def _draw(layout: _Layout) -> bytes:
    width_mm, height_mm, scale = layout.width_mm, layout.height_mm, layout.inches_a_mm
    figure = Figure(figsize=(FIGURE_INCHES[0], scale * height_mm), dpi=130, facecolor="black")
    margin_mm = (FIGURE_INCHES[0] / scale - width_mm) / 2
    for panel, left_mm, bottom_mm in layout.places_mm():
        place_mm = (margin_mm + left_mm, bottom_mm, panel.width_mm, panel.height_mm)
        whole_mm = (FIGURE_INCHES[0] / scale, height_mm) * 2
        axes = figure.add_axes(tuple(np.divide(place_mm, whole_mm)))
        axes.imshow(panel.picture, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        behind = {"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1.5}
        axes.text(0.02, 0.99, panel.name, color="white", fontsize=9, va="top", transform=axes.transAxes, bbox=behind)
    with io.BytesIO() as stream:
        figure.savefig(stream, format="png", facecolor="black")
        return stream.getvalue()


def _turned(case: OverlayCase, values: Sequence[int]) -> tuple[LabelMap, LabelMap, Lengths]:
    """The vessels of label and prediction as ``(z, y, x)`` in the box around both, with a margin, and the spacing."""
    order, flips = body_order(case.affine)
    spacing_mm = np.array([case.spacing_mm[axis] for axis in order])
    turned = [np.flip(np.transpose(labels, order), flips) for labels in (case.label, case.prediction)]
    kept = [np.where(np.isin(labels, values), labels, 0) for labels in turned]
    box = bounding_box((kept[0] > 0) | (kept[1] > 0))
    margin = [(int(np.ceil(MARGIN_MM / length)),) * 2 for length in spacing_mm]
    label, prediction = (np.pad(labels[box], margin) for labels in kept)
    return label, prediction, spacing_mm


def _mark_apart(labels: LabelMap, others: LabelMap, spacing_mm: Lengths) -> LabelMap:
    """The labels, with another value where they lie farther than the tolerance from any voxel of the others."""
    voxels, targets = np.argwhere(labels), np.argwhere(others)
    if not len(targets):
        return np.where(labels, np.uint8(_APART), labels)
    near = cKDTree(targets * spacing_mm).query(voxels * spacing_mm, distance_upper_bound=NSD_TOLERANCE_MM)[0]
    marked = labels.copy()
    marked[tuple(voxels[np.isinf(near)].T)] = _APART
    return marked


def _project(labels: LabelMap, view: _View, colours: Mapping[int, Colour]) -> Picture:
    """The colour of the first vessel on each ray, shaded by its distance; what lies apart shines through."""
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
