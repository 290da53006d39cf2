"""Overlays: outlines of prediction and label on three slices of a case, in true proportions."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage

from uumamba.evaluation.means import case_dice
from uumamba.evaluation.orientation import display_order
from uumamba.evaluation.scores import ScoreRow
from uumamba.types import LabelMap, SpacingMm

# Okabe & Ito's colours, told apart with every common colour vision; the first three stand out best on grey.
COLOURS = ("#56B4E9", "#E69F00", "#F0E442", "#009E73", "#CC79A7", "#D55E00", "#0072B2")
# Where there are more structures: each is the colour of CIELAB (lightness 42 to 94, chroma above 28) that lies farthest
# from all before it and from white; neighbours in the list differ by 34 units or more.
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
    """What an overlay shows: one case on its native grid.

    Args:
        case_id: the case.
        image: native array, three axes.
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
    """The colour of each structure, the same in every plot and overlay."""
    colours = COLOURS + MORE_COLOURS
    return {name: colours[index % len(colours)] for index, name in enumerate(structures)}


def pick_cases(rows: Sequence[ScoreRow]) -> dict[str, str]:
    """Case ids of the ``best``, ``median`` (the lower one of two) and ``worst`` case by mean Dice; ties go by id.

    With fewer than three cases the roles that would repeat a case are left out.
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
    """Draw three slices with the prediction's outlines solid and the label's dashed, as PNG.

    Slices are taken through the axis of the largest spacing, at 20, 50 and 80 % of where prediction or label lie.
    Left, posterior and inferior are to the right and below (the radiological view), as far as the affine is right. A
    border that two structures share is drawn once, in the colour of the later one: the endocardium is the LV's.

    Args:
        case: what to draw.
        structures: label value of each structure.
        close_up: show 60 mm about each slice's largest part, as vessels need it, and not all that lies anywhere.
    """
    stack = _Stack.of(case)
    indices = stack.representative_slices()
    window = stack.window_mm()
    width = len(indices) * (PANEL_INCHES + GAP_INCHES) - GAP_INCHES
    figure = Figure(figsize=(width, PANEL_INCHES), dpi=130, facecolor="black")
    low, high = stack.grey_range(window)
    for position, index in enumerate(indices):
        left = position * (PANEL_INCHES + GAP_INCHES)
        axes = figure.add_axes((left / width, 0.0, PANEL_INCHES / width, 1.0))
        _draw_slice(axes, stack, index, structures, grey=(low, high))
        left_mm, right_mm, top_mm, bottom_mm = stack.close_up_mm(index) if close_up else window
        axes.set_xlim(left_mm, right_mm)
        axes.set_ylim(bottom_mm, top_mm)
        text = f"slice {index + 1} of {len(stack.image)}"
        axes.text(0.03, 0.03, text, color="white", fontsize=9, transform=axes.transAxes)
    with io.BytesIO() as stream:
        figure.savefig(stream, format="png", facecolor="black")
        return stream.getvalue()


@dataclass(frozen=True)
class _Stack:
    """A case turned for display: arrays ``(slice, row, column)`` and the spacing of rows and columns."""

    image: NDArray[np.float32]
    prediction: LabelMap
    label: LabelMap
    row_mm: float
    column_mm: float

    @classmethod
    def of(cls, case: OverlayCase) -> "_Stack":
        order, flips = display_order(case.affine, case.spacing_mm)
        turned = [np.flip(np.transpose(array, order), flips) for array in (case.image, case.prediction, case.label)]
        return cls(turned[0], turned[1], turned[2], case.spacing_mm[order[1]], case.spacing_mm[order[2]])

    def representative_slices(self) -> list[int]:
        occupied = np.flatnonzero(((self.prediction > 0) | (self.label > 0)).any(axis=(1, 2)))
        first, last = (occupied[0], occupied[-1]) if occupied.size else (0, len(self.image) - 1)
        return sorted({round(first + fraction * (last - first)) for fraction in SLICE_FRACTIONS})

    def window_mm(self) -> tuple[float, float, float, float]:
        """A square around prediction and label: left, right, top, bottom."""
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
        """A square about the largest connected part of prediction and label on one slice; else about all there is."""
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
    axes: Axes, stack: _Stack, index: int, structures: Mapping[str, int], *, grey: tuple[float, float]
) -> None:
    rows, columns = stack.image.shape[1:]
    extent = (
        -0.5 * stack.column_mm,
        (columns - 0.5) * stack.column_mm,
        (rows - 0.5) * stack.row_mm,
        -0.5 * stack.row_mm,
    )
    axes.imshow(
        stack.image[index],
        cmap="gray",
        vmin=grey[0],
        vmax=grey[1],
        extent=extent,
        interpolation="bilinear",
        aspect="equal",
    )
    axes.set_axis_off()
    colours = colours_of(list(structures))
    scale = np.array([stack.column_mm, stack.row_mm])
    for name, line in borders(stack.prediction[index], structures):
        axes.plot(*(line * scale).T, color=colours[name], linewidth=1.8)
    for _, line in borders(stack.label[index], structures):
        axes.plot(*(line * scale).T, color="white", linewidth=1.4, linestyle=(0, (3.5, 2.0)))


def borders(labels: LabelMap, structures: Mapping[str, int]) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Border lines of each structure of one slice, as ``(column, row)`` points in voxels; each border comes once.

    Lines run halfway between voxel centres. Two dashed lines on one border would fill each other's gaps, so the
    structure that is listed later keeps it.
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
    """The label on the far side of each point: a point lies between two voxels, one of them in the mask."""
    low, high = np.floor(line).astype(int).T, np.ceil(line).astype(int).T
    inside_is_low = mask[low[1], low[0]]
    return np.where(inside_is_low, padded[high[1], high[0]], padded[low[1], low[0]])


def _split(line: NDArray[np.float64], keep: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """The runs of points that are kept, each of two points at least."""
    runs = np.split(np.arange(len(line)), np.flatnonzero(np.diff(keep.astype(np.int8))) + 1)
    return [line[run] for run in runs if keep[run[0]] and len(run) > 1]
