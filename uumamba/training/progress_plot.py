"""``progress.png``: loss, Dice, learning rate and loss weights over the epochs of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uumamba.runtime.files import report_write_errors, whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
Curves = dict[str, list[tuple[float, float]]]

INK = "#1f2933"
GRID = "#e4e7eb"
FAINT = "#9aa5b1"
COLOURS = ("#1f2933", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")

LOWEST = 3
"""Structures with a colour where there are more structures than colours: those with the lowest Dice."""


def draw_progress(rows: Sequence[Row], path: Path | str) -> None:
    """Draw a run's rows into a PNG that is whole or absent; panels without numbers are left out.

    Args:
        rows: of ``metrics.jsonl``; ``dice`` is black, every ``dice_<structure>`` has a colour of its own; of more than
            six structures only the lowest three, and the others are grey.
        path: the picture. Nothing is written where no row holds a number.
    """
    # Imported here, because a run without a folder draws nothing; not pyplot, whose state is global.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {title: curves for title, curves in _panels(rows).items() if curves}
    if not panels:
        return
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(5.2 * across, 3.1 * down), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for place, (title, curves) in enumerate(panels.items(), start=1):
        _draw(figure.add_subplot(down, across, place), title, curves)
    with report_write_errors(path), whole_file(path) as unfinished:
        figure.savefig(unfinished, format="png")


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
    """Return points ``(epoch, value)`` by name; epochs count from 1 for the reader."""
    curves = {
        name: [(row["epoch"] + 1, row[key]) for row in rows if row.get(key) is not None] for name, key in keys.items()
    }
    return {name: points for name, points in curves.items() if points}


def _draw(axes: "Axes", title: str, curves: Curves) -> None:
    from matplotlib.ticker import MaxNLocator

    coloured = _coloured(curves)
    others = [name for name in curves if name not in coloured]
    for name in others:
        label = f"{len(others)} others" if name == others[0] else None
        axes.plot(*zip(*curves[name], strict=True), color=FAINT, label=label, lw=0.8)
    for colour, name in zip(COLOURS, coloured, strict=False):
        width, marker = 2.2 if name == "mean" else 1.3, "." if len(curves[name]) < 40 else ""
        axes.plot(*zip(*curves[name], strict=True), color=colour, label=name, lw=width, marker=marker)
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    axes.set_xlabel("epoch", fontsize=9, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8)


def _coloured(curves: Curves) -> list[str]:
    """Return the curves with a colour: all, or if there are too many the mean and those that end lowest."""
    if len(curves) <= len(COLOURS):
        return list(curves)
    lowest = sorted((name for name in curves if name != "mean"), key=lambda name: curves[name][-1][1])[:LOWEST]
    return [name for name in curves if name == "mean" or name in lowest]
