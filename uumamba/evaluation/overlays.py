"""Overlays: outlines of prediction and label on three slices, in true proportions."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage

from uumamba.evaluation.means import case_dice
from uumamba.evaluation.orientation import display_order
from uumamba.evaluation.scores import ScoreRow
from uumamba.types import LabelMap, SpacingMm

# Okabe & Ito's colours for every common colour vision; the first three have the best contrast on grey.
COLOURS = ("#56B4E9", "#E69F00", "#F0E442", "#009E73", "#CC79A7", "#D55E00", "#0072B2")
# For more structures: each is the CIELAB colour (lightness 42 to 94, chroma above 28) with the largest distance from
# white and all colours before it; neighbours in the list differ by 34 units or more.
MORE_COLOURS = (
    "#870FFF", "#00FF00", "#FF1ED2", "#FF005A", "#9678FF", "#78692D", "#5AFF96", "#00FFFF", "#5AA500",
    "#FFA587", "#C3E196", "#A54B3C", "#C30078", "#FF0000", "#A5F01E", "#FF96FF", "#E1C3FF",
)  # fmt: skip
SLICE_FRACTIONS = (0.2, 0.5, 0.8)
MARGIN_MM = 18.0
CLOSE_UP_MM = 60.0
PANEL_INCHES = 3.4
GAP_INCHES = 0.03


@dataclass(frozen=True)
class OverlayCase:
    """One case on its native grid, for an overlay.

    Args:
        case_id: name of the case.
        image: native array with three axes.
        prediction: label map on the same grid.
        label: ground truth on the same grid.
        affine: 4x4, voxel to RAS+ millimetres.
        spacing_mm: voxel edge lengths in array-axis order.
    """

    case_id: str
    image: NDArray[np.float32]
    prediction: LabelMap
    label: LabelMap
    affine: NDArray[np.float64]
    spacing_mm: SpacingMm


def colours_of(structures: Sequence[str]) -> dict[str, str]:
    """Return the colour of each structure, equal in all plots and overlays."""
    colours = COLOURS + MORE_COLOURS
    return {name: colours[index % len(colours)] for index, name in enumerate(structures)}


def pick_cases(rows: Sequence[ScoreRow]) -> dict[str, str]:
    """Return the ``best``, ``median`` (lower of two) and ``worst`` case id by mean Dice; ties go by id.

    With fewer than three cases, roles that would repeat a case are left out.
    """
    scores = case_dice(rows)
    ranked = sorted(scores, key=lambda case_id: (scores[case_id], case_id))
    if not ranked:
        return {}
    roles = {"best": ranked[-1], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[0]}
    seen: dict[str, str] = {}
    for role in ("best", "worst", "median"):
        if roles[role] not in seen.values():
            seen[role] = roles[role]
    return {role: seen[role] for role in roles if role in seen}


def draw_overlay(case: OverlayCase, structures: Mapping[str, int], *, close_up: bool = False) -> bytes:
    """Draw three slices as PNG, with solid outlines of the prediction and dashed ones of the label.

    Slices are perpendicular to the axis of the largest spacing, at 20, 50 and 80 % of the extent of prediction and
    label. Left, posterior and inferior are to the right and below (the radiological view), if the affine is correct. A
    border of two structures is drawn once, in the colour of the later one: the endocardium is the LV's.

    Args:
        case: the case.
        structures: label value of each structure.
        close_up: show 60 mm around the largest part of each slice, for vessels, instead of all parts.
    """
    stack = _Stack.from_case(case)
    indices, window = stack.representative_slices(), stack.window_mm()
    width = len(indices) * (PANEL_INCHES + GAP_INCHES) - GAP_INCHES
    figure = Figure(figsize=(width, PANEL_INCHES), dpi=130, facecolor="black")
    grey = stack.grey_range(window)
    for position, index in enumerate(indices):
        left = position * (PANEL_INCHES + GAP_INCHES)
        axes = figure.add_axes((left / width, 0.0, PANEL_INCHES / width, 1.0))
        _draw_slice(axes, stack, index, structures, grey)
        left_mm, right_mm, top_mm, bottom_mm = stack.close_up_mm(index) if close_up else window
        axes.set_xlim(left_mm, right_mm)
        axes.set_ylim(bottom_mm, top_mm)
        text = f"slice {index + 1} of {len(stack.image)}"
        axes.text(0.03, 0.03, text, color="white", fontsize=9, transform=axes.transAxes)
    return draw_png(figure, background="black")


def draw_png(figure: Figure, *, background: str) -> bytes:
    """Draw a figure as PNG."""
    with io.BytesIO() as stream:
        figure.savefig(stream, format="png", facecolor=background)
        return stream.getvalue()


def reorient(array: NDArray[Any], order: Sequence[int], flips: Sequence[int]) -> NDArray[Any]:
    """Transpose and flip an array for display."""
    return np.flip(np.transpose(array, order), tuple(flips))


@dataclass(frozen=True)
class _Stack:
    """Case in display order: arrays ``(slice, row, column)`` and the spacing of rows and columns."""

    image: NDArray[np.float32]
    prediction: LabelMap
    label: LabelMap
    row_mm: float
    column_mm: float

    @classmethod
    def from_case(cls, case: OverlayCase) -> "_Stack":
        order, flips = display_order(case.affine, case.spacing_mm)
        image, prediction, label = (
            reorient(array, order, flips) for array in (case.image, case.prediction, case.label)
        )
        return cls(image, prediction, label, case.spacing_mm[order[1]], case.spacing_mm[order[2]])

    def representative_slices(self) -> list[int]:
        occupied = np.flatnonzero(((self.prediction > 0) | (self.label > 0)).any(axis=(1, 2)))
        first, last = (occupied[0], occupied[-1]) if occupied.size else (0, len(self.image) - 1)
        return sorted({round(first + fraction * (last - first)) for fraction in SLICE_FRACTIONS})

    def window_mm(self) -> tuple[float, float, float, float]:
        """Return a square around prediction and label: left, right, top, bottom."""
        occupied = np.any((self.prediction > 0) | (self.label > 0), axis=0)
        rows, columns = (np.flatnonzero(np.any(occupied, axis=axis)) for axis in (1, 0))
        if not rows.size:
            rows, columns = np.arange(occupied.shape[0]), np.arange(occupied.shape[1])
        top, bottom = rows[0] * self.row_mm, rows[-1] * self.row_mm
        left, right = columns[0] * self.column_mm, columns[-1] * self.column_mm
        half = max(bottom - top, right - left) / 2 + MARGIN_MM
        middle_row, middle_column = (top + bottom) / 2, (left + right) / 2
        return middle_column - half, middle_column + half, middle_row - half, middle_row + half

    def close_up_mm(self, index: int) -> tuple[float, float, float, float]:
        """Return a square around the largest connected part on one slice, or around all slices' parts."""
        parts, number = ndimage.label((self.prediction[index] > 0) | (self.label[index] > 0))
        if not number:
            return self.window_mm()
        largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
        row, column = (float(middle) for middle in ndimage.center_of_mass(parts == largest))
        x_mm, y_mm, half = column * self.column_mm, row * self.row_mm, CLOSE_UP_MM / 2
        return x_mm - half, x_mm + half, y_mm - half, y_mm + half

    def grey_range(self, window: tuple[float, float, float, float]) -> tuple[float, float]:
        left, right, top, bottom = window
        rows = slice(max(int(top / self.row_mm), 0), int(bottom / self.row_mm) + 1)
        columns = slice(max(int(left / self.column_mm), 0), int(right / self.column_mm) + 1)
        low, high = np.nanpercentile(self.image[:, rows, columns], (0.5, 99.5))
        return float(low), max(float(high), float(low) + 1e-6)


def _draw_slice(
    axes: Axes, stack: _Stack, index: int, structures: Mapping[str, int], grey: tuple[float, float]
) -> None:
    rows, columns = stack.image.shape[1:]
    right, bottom = (columns - 0.5) * stack.column_mm, (rows - 0.5) * stack.row_mm
    extent = (-0.5 * stack.column_mm, right, bottom, -0.5 * stack.row_mm)
    style: dict[str, Any] = {"cmap": "gray", "interpolation": "bilinear", "aspect": "equal"}
    axes.imshow(stack.image[index], vmin=grey[0], vmax=grey[1], extent=extent, **style)
    axes.set_axis_off()
    colours = colours_of(list(structures))
    scale = np.array([stack.column_mm, stack.row_mm])
    for name, line in borders(stack.prediction[index], structures):
        axes.plot(*(line * scale).T, color=colours[name], linewidth=1.8)
    for _, line in borders(stack.label[index], structures):
        axes.plot(*(line * scale).T, color="white", linewidth=1.4, linestyle=(0, (3.5, 2.0)))


def borders(labels: LabelMap, structures: Mapping[str, int]) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield border lines of each structure of a slice, as ``(column, row)`` points in voxels.

    Lines run halfway between voxel centres. Two dashed lines on one border would fill each other's gaps, so it belongs
    to the later structure only.
    """
    padded = np.pad(labels, 1)  # so that outlines close at the image's edge
    taken: list[int] = []
    for name, value in reversed(list(structures.items())):
        mask = padded == value
        for line in _outlines(mask):
            for piece in _split(line, np.isin(_outer_values(padded, mask, line), taken, invert=True)):
                yield name, piece - 1
        taken.append(value)


def _outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    if not mask.any():
        return []
    axes = Figure().add_subplot()  # never drawn: matplotlib traces contours only on axes
    return [np.asarray(line) for line in axes.contour(mask.astype(np.float32), levels=[0.5]).allsegs[0]]


def _outer_values(padded: LabelMap, mask: NDArray[np.bool_], line: NDArray[np.float64]) -> LabelMap:
    """Return the label outside the mask at each point, which lies between two voxels."""
    low, high = np.floor(line).astype(int).T, np.ceil(line).astype(int).T
    inside_is_low = mask[low[1], low[0]]
    return np.where(inside_is_low, padded[high[1], high[0]], padded[low[1], low[0]])


def _split(line: NDArray[np.float64], keep: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Return the runs of kept points with at least two points."""
    runs = np.split(np.arange(len(line)), np.flatnonzero(np.diff(keep.astype(np.int8))) + 1)
    return [line[run] for run in runs if keep[run[0]] and len(run) > 1]
