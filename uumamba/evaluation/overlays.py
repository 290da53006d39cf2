"""Overlays: outlines of prediction and label on three slices, in true proportions."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from uumamba.evaluation.colours import assign_colours
from uumamba.evaluation.means import case_dice
from uumamba.evaluation.orientation import find_display_order
from uumamba.evaluation.scores import ScoreRow
from uumamba.runtime.figures import Axes, Figure, draw_style, save_png
from uumamba.runtime.painting import select_values
from uumamba.types import LabelMap, Mask, SpacingMm

SLICE_FRACTIONS = (0.2, 0.5, 0.8)
WINDOW_MARGIN_MM = 18.0
CLOSE_UP_MM = 60.0
PANEL_INCHES = 3.4
GAP_INCHES = 0.03

WindowMm = tuple[float, float, float, float]
"""Left, right, top and bottom edge of a part of a slice, in millimetres."""


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


def pick_cases(rows: Sequence[ScoreRow]) -> dict[str, str]:
    """Return the ids of the best, median and worst case by role.

    Cases are ranked by mean Dice, equal ones by id; of an even number the median is the lower of two. With fewer than
    three cases, roles that would repeat a case are left out.
    """
    scores = case_dice(rows)
    ranked = sorted(scores, key=lambda case_id: (scores[case_id], case_id))
    picked: dict[str, str] = {}
    for role, rank in (("best", -1), ("worst", 0), ("median", (len(ranked) - 1) // 2)):
        if ranked and ranked[rank] not in picked.values():
            picked[role] = ranked[rank]
    return {role: picked[role] for role in ("best", "median", "worst") if role in picked}


@draw_style()
def draw_overlay(
    case: OverlayCase,
    structures: Mapping[str, int | Sequence[int]],
    *,
    close_up: bool = False,
    colours: Mapping[str, str] | None = None,
) -> bytes:
    """Draw outlines of prediction and label on three slices, as PNG.

    Outlines of the prediction are solid, those of the label dashed. Slices are perpendicular to the axis of the largest
    spacing, at 20, 50 and 80 % of the extent of prediction and label. Left, posterior and inferior are to the right and
    below (the radiological view), if the affine is correct. A border of two structures is drawn once, in the colour of
    the later one: the endocardium is the LV's.

    Args:
        case: the case.
        structures: label value of each structure, or all label values of each region.
        colours: as for :func:`assign_colours`.
        close_up: show 60 mm around the largest part of each slice, for vessels, instead of all parts.
    """
    stack = _Stack.from_case(case)
    indices, window = stack.select_slices(), stack.window_mm()
    width = len(indices) * (PANEL_INCHES + GAP_INCHES) - GAP_INCHES
    figure = Figure(figsize=(width, PANEL_INCHES), dpi=130, facecolor="black")
    grey = stack.grey_range(window)
    for position, index in enumerate(indices):
        axes = figure.add_axes(((position * (PANEL_INCHES + GAP_INCHES)) / width, 0.0, PANEL_INCHES / width, 1.0))
        _draw_slice(axes, stack, index, structures, grey, assign_colours(list(structures), colours))
        left_mm, right_mm, top_mm, bottom_mm = stack.close_up_mm(index) if close_up else window
        axes.set(xlim=(left_mm, right_mm), ylim=(bottom_mm, top_mm))
        axes.text(
            0.03, 0.03, f"slice {index + 1} of {len(stack.image)}", color="white", fontsize=9, transform=axes.transAxes
        )
    return draw_png(figure, background="black")


def draw_png(figure: Figure, *, background: str) -> bytes:
    """Draw a figure as PNG."""
    with io.BytesIO() as stream:
        save_png(figure, stream, facecolor=background)
        return stream.getvalue()


def reorient(array: NDArray[Any], order: Sequence[int], flips: Sequence[int]) -> NDArray[Any]:
    """Transpose and flip an array for display."""
    return np.flip(np.transpose(array, order), tuple(flips))


@dataclass(frozen=True)
class _Stack:
    """Case in display order, as arrays ``(slice, row, column)``.

    ``mask`` is true in prediction or label; ``pixel_mm`` is the spacing of rows and columns.
    """

    image: NDArray[np.float32]
    prediction: LabelMap
    label: LabelMap
    mask: Mask
    pixel_mm: NDArray[np.float64]

    @classmethod
    def from_case(cls, case: OverlayCase) -> "_Stack":
        order, flips = find_display_order(case.affine, case.spacing_mm)
        image, prediction, label = (
            reorient(array, order, flips) for array in (case.image, case.prediction, case.label)
        )
        pixel_mm = np.array([case.spacing_mm[axis] for axis in order[1:]])
        return cls(image, prediction, label, (prediction > 0) | (label > 0), pixel_mm)

    def select_slices(self) -> list[int]:
        occupied = np.flatnonzero(self.mask.any(axis=(1, 2)))
        first, last = (occupied[0], occupied[-1]) if occupied.size else (0, len(self.image) - 1)
        return sorted({round(first + fraction * (last - first)) for fraction in SLICE_FRACTIONS})

    def window_mm(self) -> WindowMm:
        """Return a square with a margin around prediction and label.

        Without any voxel, the square is around the slice.
        """
        plane = self.mask.any(axis=0)
        corners_mm = np.argwhere(plane if plane.any() else ~plane) * self.pixel_mm
        first_mm, last_mm = corners_mm.min(axis=0), corners_mm.max(axis=0)
        return _make_square((first_mm + last_mm) / 2, float((last_mm - first_mm).max()) / 2 + WINDOW_MARGIN_MM)

    def close_up_mm(self, index: int) -> WindowMm:
        """Return a square around the largest connected part on one slice.

        Without any part on the slice, the result is that of :meth:`window_mm`.
        """
        parts, number = ndimage.label(self.mask[index])
        if not number:
            return self.window_mm()
        largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
        return _make_square(np.array(ndimage.center_of_mass(parts == largest)) * self.pixel_mm, CLOSE_UP_MM / 2)

    def grey_range(self, window: WindowMm) -> tuple[float, float]:
        left, right, top, bottom = window
        row_mm, column_mm = self.pixel_mm
        rows = slice(max(int(top / row_mm), 0), int(bottom / row_mm) + 1)
        columns = slice(max(int(left / column_mm), 0), int(right / column_mm) + 1)
        low, high = np.nanpercentile(self.image[:, rows, columns], (0.5, 99.5))
        return float(low), max(float(high), float(low) + 1e-6)


def _make_square(centre_mm: NDArray[np.float64], half_mm: float) -> WindowMm:
    row_mm, column_mm = centre_mm.tolist()
    return column_mm - half_mm, column_mm + half_mm, row_mm - half_mm, row_mm + half_mm


def _draw_slice(
    axes: Axes,
    stack: _Stack,
    index: int,
    structures: Mapping[str, int | Sequence[int]],
    grey: tuple[float, float],
    colours: Mapping[str, str],
) -> None:
    row_mm, column_mm = stack.pixel_mm
    rows, columns = stack.image.shape[1:]
    extent = (-0.5 * column_mm, (columns - 0.5) * column_mm, (rows - 0.5) * row_mm, -0.5 * row_mm)
    axes.imshow(
        stack.image[index],
        vmin=grey[0],
        vmax=grey[1],
        extent=extent,
        cmap="gray",
        interpolation="bilinear",
        aspect="equal",
    )
    axes.set_axis_off()
    scale = stack.pixel_mm[::-1]
    for name, line in trace_borders(stack.prediction[index], structures):
        axes.plot(*(line * scale).T, color=colours[name], linewidth=1.8)
    for _, line in trace_borders(stack.label[index], structures):
        axes.plot(*(line * scale).T, color="white", linewidth=1.4, linestyle=(0, (3.5, 2.0)))


def trace_borders(
    labels: LabelMap, structures: Mapping[str, int | Sequence[int]]
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield the border lines of each structure on a slice.

    A line consists of ``(column, row)`` points in voxels, halfway between voxel centres. Two dashed lines on one border
    would fill each other's gaps, so a common border belongs to the later structure only.
    """
    padded = np.pad(labels, 1)  # so that outlines close at the image's edge
    drawn: list[int] = []
    for name, value in reversed(list(structures.items())):
        values = [value] if isinstance(value, int) else list(value)
        mask = select_values(padded, values)
        for line in _trace_outlines(mask):
            is_new = np.isin(_find_outer_values(padded, mask, line), drawn, invert=True)
            runs = np.split(np.arange(len(line)), np.flatnonzero(np.diff(is_new.astype(np.int8))) + 1)
            yield from ((name, line[run] - 1) for run in runs if is_new[run[0]] and len(run) > 1)
        drawn += values


@draw_style()
def _trace_outlines(mask: Mask) -> list[NDArray[np.float64]]:
    if not mask.any():
        return []
    # The figure is never drawn: matplotlib traces contours only on axes.
    contours = Figure().add_subplot().contour(mask.astype(np.float32), levels=[0.5])
    return [np.asarray(line) for line in contours.allsegs[0]]


def _find_outer_values(padded: LabelMap, mask: Mask, line: NDArray[np.float64]) -> LabelMap:
    """Return the label outside the mask at each point of an outline.

    Each point is halfway between a voxel of the mask and a voxel outside.
    """
    low, high = np.floor(line).astype(int).T, np.ceil(line).astype(int).T
    inside_is_low = mask[low[1], low[0]]
    return np.where(inside_is_low, padded[high[1], high[0]], padded[low[1], low[0]])
