"""Pictures of the README: a heart with outlines, and a report.

Both are made from the output of ``uumamba demo``, which runs first if the folder is empty. A headless Chromium
photographs the report.

python -m benchmarks.pictures --demo runs/demo --out docs/pictures
"""

import argparse
import io
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from uumamba.config import read_config
from uumamba.data.case import MANIFEST_NAME, Case, Manifest
from uumamba.evaluation.colours import assign_colours
from uumamba.evaluation.orientation import find_display_order
from uumamba.evaluation.overlays import OverlayCase, pick_cases, reorient, trace_borders
from uumamba.evaluation.scores import SCORES_NAME, read_scores
from uumamba.pipelines.datasets import find_predictions
from uumamba.pipelines.demo import demo
from uumamba.pipelines.report import load_overlay_case
from uumamba.runtime.errors import require
from uumamba.runtime.figures import Axes, Figure, draw_style, save_png
from uumamba.runtime.files import whole_file

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FULL_NAMES = {"RV": "right ventricle (RV)", "MYO": "myocardium (MYO)", "LV": "left ventricle (LV)"}
PHASE_NAMES = {"ED": "end-diastole (ED)", "ES": "end-systole (ES)"}
BACKGROUND, INK = "#16191d", "#f1f3f5"
MARGIN_MM = 30.0
REPORT_SIZE = (1000, 880)
GREYS, COLOURS = 96, 96
"""Sizes of the palette of a stored picture, so that it stays below 200 kB."""
GREY_SPREAD = 24
"""Largest difference of the channels of a grey pixel."""


def main(given: Sequence[str] | None = None) -> None:
    """Make both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, required=True, help="output of uumamba demo; made there if absent")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"), help="folder of the pictures")
    options = parser.parse_args(given)
    if not (options.demo / "report.html").is_file():
        demo(read_config("demo"), out=options.demo, say=print)
    for name, png in (
        ("heart.png", draw_heart(options.demo)),
        ("report.png", photograph(options.demo / "report.html", REPORT_SIZE)),
    ):
        stored = reduce_colours(png)
        with whole_file(options.out / name) as unfinished:
            unfinished.write_bytes(stored)
        print(f"{options.out / name}: {len(stored) / 1000:.0f} kB")


@draw_style()
def draw_heart(run: Path) -> bytes:
    """Draw the middle slice of a typical patient at ED and ES."""
    manifest = Manifest.read(run / "prepared" / MANIFEST_NAME)
    predictions, structures = find_predictions(run / "predictions"), manifest.structures
    colours = assign_colours(list(structures), manifest.colours)
    figure = Figure(figsize=(9.6, 5.6), dpi=100, facecolor=BACKGROUND)
    for position, case in enumerate(_find_frames(run, manifest)):
        axes = figure.add_axes((0.005 + 0.5 * position, 0.09, 0.49, 0.83))
        _draw_middle_slice(axes, load_overlay_case(manifest, predictions, case.case_id), structures, colours)
        title = PHASE_NAMES.get(case.phase or "", case.case_id)
        figure.text(0.25 + 0.5 * position, 0.945, title, color=INK, fontsize=15, ha="center")
    _name_structures(figure, colours)
    with io.BytesIO() as stream:
        save_png(figure, stream, facecolor=BACKGROUND)
        return stream.getvalue()


def _find_frames(run: Path, manifest: Manifest) -> list[Case]:
    """Find the frames of the median case's patient, ED first."""
    picked = pick_cases(read_scores(run / SCORES_NAME))
    patient = manifest.by_id(picked.get("median") or next(iter(picked.values()))).patient_id
    return sorted(
        (case for case in manifest.cases if case.patient_id == patient and case.phase in PHASE_NAMES),
        key=lambda case: str(case.phase),
    )


def _draw_middle_slice(
    axes: Axes, case: OverlayCase, structures: Mapping[str, int], colours: Mapping[str, str]
) -> None:
    """Draw the middle slice with outlines of prediction and label."""
    order, flips = find_display_order(case.affine, case.spacing_mm)
    image, prediction, label = (reorient(array, order, flips) for array in (case.image, case.prediction, case.label))
    row_mm, column_mm = (case.spacing_mm[axis] for axis in order[1:])
    occupied = np.flatnonzero((label > 0).any(axis=(1, 2)))
    index = int(occupied[len(occupied) // 2])
    rows, columns = image.shape[1:]
    extent = (-0.5 * column_mm, (columns - 0.5) * column_mm, (rows - 0.5) * row_mm, -0.5 * row_mm)
    low, high = np.percentile(image[index], (1, 99.5))
    axes.imshow(image[index], cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bicubic")
    axes.set_axis_off()
    for name, line in trace_borders(prediction[index], structures):
        axes.plot(*(line * (column_mm, row_mm)).T, color=colours[name], linewidth=2.6)
    for _, line in trace_borders(label[index], structures):
        axes.plot(*(line * (column_mm, row_mm)).T, color="white", linewidth=1.3, linestyle=(0, (3.5, 2.5)))
    places = np.argwhere((label[index] > 0) | (prediction[index] > 0)) * (row_mm, column_mm)
    (top, left), (bottom, right) = places.min(axis=0) - MARGIN_MM, places.max(axis=0) + MARGIN_MM
    axes.set(xlim=(left, right), ylim=(bottom, top))


def _name_structures(figure: Figure, colours: Mapping[str, str]) -> None:
    """Write the legend in one line below the panels."""
    entries = [(FULL_NAMES.get(name, name), colour, "-") for name, colour in colours.items()]
    for number, (text, colour, line) in enumerate([*entries, ("label", "white", "--")]):
        begin = 0.015 + 0.27 * number
        axes = figure.add_axes((begin, 0.03, 0.03, 0.03))
        axes.plot((0, 1), (0, 0), color=colour, linewidth=3 if line == "-" else 1.5, linestyle=line)
        axes.set_axis_off()
        figure.text(begin + 0.038, 0.034, text, color=INK, fontsize=12, va="bottom")


def photograph(page: Path, size: tuple[int, int]) -> bytes:
    """Photograph the top of an HTML page with a headless browser.

    Raises:
        UsageError: no browser is installed.
    """
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    require(found, "browser", got="none", expected=f"one of {', '.join(BROWSERS)}", fix="apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "page.png"
        command = [
            str(found),
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking"),
            f"--user-data-dir={folder}",
            f"--window-size={size[0]},{size[1]}",
            f"--screenshot={target}",
            page.resolve().as_uri(),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        return target.read_bytes()


def reduce_colours(png: bytes) -> bytes:
    """Store a picture with a palette.

    Greys and the few coloured pixels have entries of their own.
    """
    with Image.open(io.BytesIO(png)) as opened, io.BytesIO() as stream:
        picture = opened.convert("RGB")
        pixels = np.asarray(picture).reshape(-1, 3)
        is_grey = np.ptp(pixels.astype(np.int16), axis=1) <= GREY_SPREAD
        entries = [*_find_palette(pixels[is_grey], GREYS), *_find_palette(pixels[~is_grey], COLOURS)]
        palette = Image.new("P", (1, 1))
        palette.putpalette(entries)
        picture.quantize(palette=palette, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
        return stream.getvalue()


def _find_palette(pixels: NDArray[np.uint8], size: int) -> list[int]:
    """Find at most ``size`` colours that stand for the pixels."""
    if not len(pixels):
        return []
    found = Image.fromarray(pixels[None]).quantize(size).getpalette()
    return list(found or ())[: 3 * size]


if __name__ == "__main__":
    main()
