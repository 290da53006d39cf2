"""Preview of a prediction: outlines on some slices, in true proportions.

Drawn with Pillow in some hundredths of a second; the import of matplotlib alone takes half a second.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from uumamba.evaluation.orientation import find_display_order
from uumamba.types import LabelMap, Mask, SpacingMm

COLUMNS = 3
PANEL = 320
"""Width and height of a panel in pixels."""
MARGIN_MM = 18.0
_OUTLINE = 2
_GAP = 4
_FONT = 15
_LINE = 24
_MOST_LINES = 3
_LONGEST_NAME = 40


@dataclass(frozen=True)
class PreviewFrame:
    """A frame to draw.

    Args:
        title: shown above its slices, such as ``"ED, frame 4 of 12"``; empty for a still scan.
        image: native array with three axes.
        label: classes on the same grid.
    """

    title: str
    image: NDArray[Any]
    label: LabelMap


def draw_preview(
    frames: Sequence[PreviewFrame],
    *,
    affine: NDArray[np.float64],
    spacing_mm: SpacingMm,
    classes: Mapping[str, int],
    colours: Mapping[str, str],
) -> bytes:
    """Draw the outlines of structures on slices, as PNG.

    Slices are perpendicular to the axis of the largest spacing, evenly spread over the extent of all structures: six of
    a still scan, or the same three of each of several frames. Left, posterior and inferior are to the right and below
    (the radiological view), if the affine is correct. The square shown is 18 mm wider than the structures on each side.

    Args:
        frames: the frames, on one grid.
        affine: 4 x 4, voxel index to RAS+ millimetres.
        spacing_mm: spacing of the array's axes.
        classes: class of each structure in the labels.
        colours: colour of each structure, such as ``"#d62728"``.

    Example:
        >>> frame = PreviewFrame("", np.zeros((8, 9, 3), np.float32), np.zeros((8, 9, 3), np.uint8))
        >>> png = draw_preview([frame], affine=np.eye(4), spacing_mm=(1.0, 1.0, 1.0), classes={}, colours={})
        >>> png[1:4]
        b'PNG'
    """
    order, flips = find_display_order(affine, spacing_mm)
    pixel_mm = np.array([spacing_mm[axis] for axis in order[1:]])
    images, labels = (
        [np.flip(np.transpose(array, order), flips) for array in arrays]
        for arrays in ([frame.image for frame in frames], [frame.label for frame in frames])
    )
    indices = _select_slices(labels, COLUMNS if len(frames) > 1 else 2 * COLUMNS)
    places = _place_pixels(labels, pixel_mm)
    shown = [[image[index] for index in indices] for image in images]
    grey = _find_grey_range(shown, places)
    palette = np.zeros((256, 3), np.uint8)
    for name, value in classes.items():
        palette[value] = tuple(bytes.fromhex(colours[name][1:]))
    panels = [
        _draw_panel(
            _paint(image, label[index], places, grey=grey, palette=palette),
            f"slice {index + 1} of {len(label)}",
            title=frame.title,
        )
        for frame, row, label in zip(frames, shown, labels, strict=True)
        for image, index in zip(row, indices, strict=True)
    ]
    found = {value for label in labels for index in indices for value in np.unique(label[index]).tolist()}
    legend = [(name, colours[name]) for name, value in classes.items() if value in found]
    return _compose(panels, columns=min(COLUMNS, len(indices)), legend=legend)


def _select_slices(labels: Sequence[LabelMap], count: int) -> list[int]:
    occupied = np.flatnonzero(np.any([label.any(axis=(1, 2)) for label in labels], axis=0))
    first, last = (occupied[0], occupied[-1]) if occupied.size else (0, len(labels[0]) - 1)
    return np.unique(np.round(first + (np.arange(count) + 0.5) / count * (last - first))).astype(int).tolist()


def _place_pixels(labels: Sequence[LabelMap], pixel_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return row and column, in voxels, of a panel's pixels: ``(2, PANEL)``.

    The panel is a square around all structures; without any, it is around the slice.
    """
    plane = np.any([label.any(axis=0) for label in labels], axis=0)
    corners_mm = np.argwhere(plane if plane.any() else ~plane) * pixel_mm
    first_mm, last_mm = corners_mm.min(axis=0), corners_mm.max(axis=0)
    side_mm = float((last_mm - first_mm).max()) + 2 * (MARGIN_MM if plane.any() else pixel_mm.max())
    steps_mm = ((np.arange(PANEL) + 0.5) / PANEL - 0.5) * side_mm
    return ((first_mm + last_mm)[:, None] / 2 + steps_mm) / pixel_mm[:, None]


def _find_grey_range(shown: Sequence[Sequence[NDArray[Any]]], places: NDArray[np.float64]) -> tuple[float, float]:
    rows, columns = (slice(max(int(axis[0]), 0), int(axis[-1]) + 2) for axis in places)
    values = np.concatenate([image[rows, columns].ravel() for row in shown for image in row])
    low, high = np.percentile(values, (0.5, 99.5))
    return float(low), max(float(high), float(low) + 1e-6)


def _paint(
    image: NDArray[Any],
    label: LabelMap,
    places: NDArray[np.float64],
    *,
    grey: tuple[float, float],
    palette: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """Paint one slice ``(PANEL, PANEL, 3)`` with an outline inside each structure."""
    low, high = grey
    points = np.stack(np.meshgrid(*places, indexing="ij"))
    scaled = ((image.astype(np.float32) - low) / (high - low)).clip(0, 1)
    grid = ndimage.map_coordinates(scaled, points, order=1, mode="constant", cval=0.0)
    inside = ndimage.map_coordinates(label, points, order=0, mode="constant", cval=0)
    picture = np.repeat((255 * grid).astype(np.uint8)[..., None], 3, axis=2)
    outline = _find_borders(inside) & (inside > 0)
    picture[outline] = palette[inside[outline]]
    return picture


def _find_borders(label: LabelMap) -> Mask:
    """Find pixels with another label at most two pixels away."""
    border = np.zeros(label.shape, np.bool_)
    for label_view, border_view in ((label, border), (label.T, border.T)):
        for step in range(1, _OUTLINE + 1):
            differs = label_view[step:] != label_view[:-step]
            border_view[step:] |= differs
            border_view[:-step] |= differs
    return border


def _draw_panel(picture: NDArray[np.uint8], caption: str, *, title: str) -> Image.Image:
    panel = Image.fromarray(picture)
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(_FONT)
    for top, text in ((6, title), (PANEL - _FONT - 10, caption)):
        draw.text((8, top), text, font=font, fill="white", stroke_width=2, stroke_fill="black")
    return panel


def _compose(panels: Sequence[Image.Image], *, columns: int, legend: Sequence[tuple[str, str]]) -> bytes:
    """Join panels in rows, and write the legend below."""
    rows, step = -(-len(panels) // columns), PANEL + _GAP
    width = columns * step - _GAP
    font = ImageFont.load_default(_FONT)
    lines = list(_wrap(legend, font, width - 16))
    canvas = Image.new("RGB", (width, rows * step + _LINE * max(len(lines), 1)), "black")
    for position, panel in enumerate(panels):
        canvas.paste(panel, (position % columns * step, position // columns * step))
    draw, top = ImageDraw.Draw(canvas), rows * step + 2
    if not legend:
        draw.text((8, top), "no structure found", font=font, fill="white")
    for number, line in enumerate(lines):
        for left, text, colour in line:
            draw.text((8 + left, top + number * _LINE), text, font=font, fill=colour)
    with io.BytesIO() as stream:
        canvas.save(stream, "png", compress_level=3)  # half the time for a tenth more bytes
        return stream.getvalue()


def _wrap(legend: Sequence[tuple[str, str]], font: Any, width: float) -> Iterator[list[tuple[float, str, str]]]:
    """Yield the lines of a legend as lists of ``(left, text, colour)``."""
    line: list[tuple[float, str, str]] = []
    left, lines = 0.0, 0
    for number, (name, colour) in enumerate(legend):
        text = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
        length = font.getlength(text)
        if line and left + length > width:
            yield line
            line, left, lines = [], 0.0, lines + 1
            if lines == _MOST_LINES:
                yield [(0.0, f"and {len(legend) - number} more", "white")]
                return
        line.append((left, text, colour))
        left += length + _FONT
    if line:
        yield line
