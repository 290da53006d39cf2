"""``progress.png``: loss, Dice, learning rate and loss weights by epoch."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from uumamba.runtime.files import whole_file
from uumamba.runtime.observer import Observer, Row, RunView

if TYPE_CHECKING:
    from uumamba.runtime.figures import Axes

Curves = dict[str, list[tuple[float, float]]]

INK = "#1f2933"
COLOURS = (INK, "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
PALE = "#9aa5b1"

LOWEST = 3  # structures with a colour, if there are more structures than colours
SECONDS_BETWEEN_PLOTS = 30.0  # drawing one takes about half a second


class ProgressPlot(Observer):
    """Observer that draws ``progress.png`` in the run's folder, if it has one.

    The plot is drawn at the end of a run, and before that not more than twice a minute.
    """

    def __init__(self) -> None:
        self._drawn_at = time.monotonic()
        self._is_up_to_date = True

    def on_epoch_saved(self, run: RunView, row: Row) -> None:
        self._is_up_to_date = False
        if time.monotonic() - self._drawn_at > SECONDS_BETWEEN_PLOTS:
            self._draw(run)

    def on_end(self, run: RunView, error: BaseException | None) -> None:
        if not self._is_up_to_date:
            self._draw(run)

    def _draw(self, run: RunView) -> None:
        if run.folder is not None:
            draw_progress(run.rows, run.folder / "progress.png")
        self._drawn_at, self._is_up_to_date = time.monotonic(), True


def draw_progress(rows: Sequence[Row], path: Path | str) -> None:
    """Draw a run's rows into a PNG, written atomically.

    Panels without numbers are left out, and nothing is written if no row holds a number.

    Args:
        rows: rows of ``metrics.jsonl``. ``dice`` is black, and every ``dice_<structure>`` has its own colour; of more
            than six structures only the lowest three have a colour; the others are grey and not in the legend.
        path: the picture.
    """
    # Imported here, because a run without a folder draws nothing; not pyplot, whose state is global.
    from uumamba.runtime.figures import Figure, draw_style, save_png

    panels = {title: curves for title, curves in _panels(rows).items() if curves}
    if not panels:
        return
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    with draw_style(), whole_file(path) as unfinished:
        figure = Figure(figsize=(5.2 * columns, 3.1 * lines), dpi=120, layout="constrained")
        for number, (title, curves) in enumerate(panels.items(), start=1):
            _draw(figure.add_subplot(lines, columns, number), title, curves)
        save_png(figure, unfinished)


def _panels(rows: Sequence[Row]) -> dict[str, Curves]:
    """Return the curves of each panel by its title."""
    weights = [{"epoch": row["epoch"]} | (row.get("loss_weights") or {}) for row in rows]
    structures = {key.removeprefix("dice_"): key for row in rows for key in row if key.startswith("dice_")}
    return {
        "Training loss": _curves(rows, {"loss": "loss"}),
        "Validation Dice": _curves(rows, {"mean": "dice"} | structures),
        "Learning rate": _curves(rows, {"lr": "lr"}),
        "Weights of the loss terms": _curves(weights, {key: key for row in weights for key in row if key != "epoch"}),
    }


def _curves(rows: Sequence[Row], keys: Mapping[str, str]) -> Curves:
    """Return points ``(epoch, value)`` by name; epochs count from 1."""
    curves = {
        name: [(row["epoch"] + 1, row[key]) for row in rows if row.get(key) is not None] for name, key in keys.items()
    }
    return {name: points for name, points in curves.items() if points}


def _draw(axes: "Axes", title: str, curves: Curves) -> None:
    from uumamba.runtime.figures import MaxNLocator

    colours = dict(zip(_coloured_names(curves), COLOURS, strict=False))
    for name, points in curves.items():
        width, marker = 2.2 if name == "mean" else 1.3, "." if len(points) < 40 else ""
        style = {"color": colours[name], "label": name, "zorder": 3} if name in colours else {"color": PALE}
        axes.plot(*zip(*points, strict=True), lw=width, marker=marker, **style)
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    axes.set_xlabel("epoch", fontsize=9, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(color="#e4e7eb")
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8)


def _coloured_names(curves: Curves) -> list[str]:
    """Return the names of the curves with a colour.

    Of too many curves these are the mean and those with the lowest last value.
    """
    if len(curves) <= len(COLOURS):
        return list(curves)
    lowest = sorted((name for name in curves if name != "mean"), key=lambda name: curves[name][-1][1])[:LOWEST]
    return [name for name in curves if name == "mean" or name in lowest]
