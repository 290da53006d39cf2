"""Plots of reports: Dice, training curves, ejection fractions, volume curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uumamba.evaluation.clinical import CHAMBERS, PatientIndices, agreement
from uumamba.evaluation.colours import assign_colours
from uumamba.evaluation.means import moments
from uumamba.evaluation.overlays import draw_png
from uumamba.evaluation.scores import ScoreRow, group_rows
from uumamba.runtime.figures import Axes, Figure, MaxNLocator, draw_style

TEXT_COLOUR = "#1f2933"
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
MOST_UPRIGHT = 14
"""With more boxes, names would overlap, so the boxes are horizontal."""
MOST_NAMED = 8
"""Largest number of curves with a legend, which would hide more of them."""
MOST_BOXES = 600
"""Largest number of boxes; a picture of more would be too tall to store."""
MOST_GROUPS = 24
"""Largest number of groups with marks of their own; the legend of more would be taller than the plot."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": TEXT_COLOUR,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "axes.axisbelow": True,
    "text.color": TEXT_COLOUR,
    "xtick.color": TEXT_COLOUR,
    "ytick.color": TEXT_COLOUR,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
}


def plot_dice(rows: Sequence[ScoreRow], *, colours: Mapping[str, str] | None = None) -> bytes:
    """Plot Dice by structure and phase, as PNG.

    Each case is a dot, and a box shows the quartiles. Of too many boxes those with the lowest mean Dice are drawn.

    Args:
        rows: rows of ``scores.csv``.
        colours: as for :func:`uumamba.evaluation.overlays.assign_colours`.
    """
    boxes = _group_dice(rows)
    groups = list(boxes)[:MOST_BOXES]
    assigned = assign_colours([*dict.fromkeys(row.structure for row in rows)], colours)
    with draw_style(STYLE):
        horizontal = len(groups) > MOST_UPRIGHT
        figure = Figure(figsize=(9.0, 0.6 + 0.27 * len(groups) if horizontal else 3.6), dpi=130, layout="constrained")
        axes = figure.add_subplot()
        for position, group in enumerate(groups):
            _draw_dots_and_box(axes, position, np.array(boxes[group]), assigned[group[0]], horizontal=horizontal)
        ticks = range(len(groups))
        names = [(" " if horizontal else "\n").join(group).strip() for group in groups]
        if horizontal:
            axes.set(yticks=ticks, yticklabels=names, ylim=(len(groups) - 0.4, -0.6), xlabel="Dice")
        else:
            axes.set(xticks=ticks, xticklabels=names, xlim=(-0.6, len(groups) - 0.4), ylabel="Dice")
        if len(groups) < len(boxes):
            axes.set(title=f"The {len(groups)} of {len(boxes)} boxes with the lowest mean Dice")
        axes.grid(visible=False, axis="y" if horizontal else "x")
        return draw_png(figure, background="white")


def plot_training(folds: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Plot training loss, validation Dice and learned loss weights, as PNG.

    Each fold has one line over the epochs.

    Args:
        folds: rows of each fold's ``metrics.jsonl``, one for each epoch, with ``loss``, ``dice`` if validated, and
            ``loss_weights`` by term if learned. Panels without a number are left out.
    """
    terms = sorted({term for rows in folds.values() for row in rows for term in row.get("loss_weights") or {}})
    panels = {
        "Training loss": {fold: _select_finite_points(rows, "loss") for fold, rows in folds.items()},
        "Validation Dice": {fold: _select_finite_points(rows, "dice") for fold, rows in folds.items()},
        "Weights of the loss terms": {
            term if len(folds) == 1 else f"{term}, {fold}": _select_finite_points(
                [row.get("loss_weights") or {} for row in rows], term
            )
            for fold, rows in folds.items()
            for term in terms
        },
    }
    drawn = {title: curves for title, curves in panels.items() if any(curves.values())}
    with draw_style(STYLE):
        figure = Figure(figsize=(9.0, 3.0), dpi=130, layout="constrained")
        for number, (title, curves) in enumerate(drawn.items(), start=1):
            _draw_curves(figure.add_subplot(1, len(drawn), number), title, curves)
        return draw_png(figure, background="white")


def plot_ejection_fraction(patients: Sequence[PatientIndices], index: str = "lv_ef_percent") -> bytes:
    """Plot predicted against labelled ejection fractions, as PNG.

    A second panel shows their differences against their means, with bias and 95 % limits (Bland-Altman).
    """
    by_group = {group or "": members for group, members in group_rows(patients, "group").items()}
    by_group = {"": list(patients)} if len(by_group) > MOST_GROUPS else by_group
    groups = sorted(by_group)
    with draw_style(STYLE):
        figure = Figure(figsize=(9.0, 3.8), dpi=130, layout="constrained")
        against, differences = figure.subplots(1, 2)
        for number, group in enumerate(groups):
            members = by_group[group]
            label = np.array([patient.label[index] for patient in members])
            prediction = np.array([patient.prediction[index] for patient in members])
            style = {"marker": MARKERS[number % 7], "color": LINE_COLOURS[number % 5], "label": group, "alpha": 0.85}
            against.scatter(label, prediction, s=26, linewidths=0, **style)
            differences.scatter((label + prediction) / 2, prediction - label, s=26, linewidths=0, **style)
        low, high = min(*against.get_xlim(), *against.get_ylim()), max(*against.get_xlim(), *against.get_ylim())
        against.plot([low, high], [low, high], color="#9aa5b1", linewidth=1, zorder=0)
        against.set(
            aspect="equal",
            xlabel=f"{index[:2].upper()} EF from the label, %",
            ylabel="from the prediction, %",
            title="Prediction and label",
        )
        agreed = agreement(patients)[index]
        if agreed["limits"]:
            differences.axhline(agreed["bias"], color=TEXT_COLOUR, linewidth=1.2)
        for limit in agreed["limits"] or ():
            differences.axhline(limit, color=TEXT_COLOUR, linewidth=1, linestyle="dashed")
        differences.set(
            xlabel="mean of both, %", ylabel="prediction - label, points", title="Difference (Bland-Altman)"
        )
        if groups != [""]:
            against.legend(frameon=False, fontsize=8, loc="upper left")
        return draw_png(figure, background="white")


def plot_volume_curve(
    volumes_ml: Mapping[str, Sequence[float]],
    *,
    phases: Mapping[str, int] | None = None,
    times_ms: Sequence[float] | None = None,
    colours: Mapping[str, str] | None = None,
) -> bytes:
    """Plot the volumes of a cine's structures over time, as PNG.

    Phases are marked by vertical lines, and the volumes of ventricles by their numbers there. Of too many structures
    the first are drawn.

    Args:
        volumes_ml: volume in each frame, by structure.
        phases: index of the frame of ED and ES.
        times_ms: time of each frame; without it the axis shows frames, counted from 1.
        colours: as for :func:`uumamba.evaluation.overlays.assign_colours`.
    """
    assigned = assign_colours(list(volumes_ml), colours)
    count = max(map(len, volumes_ml.values()), default=0)
    times = np.arange(1, count + 1) if times_ms is None else np.asarray(times_ms, dtype=np.float64)
    with draw_style(STYLE):
        figure = Figure(figsize=(7.0, 3.6), dpi=130, layout="constrained")
        axes = figure.add_subplot()
        for name, values in list(volumes_ml.items())[:MOST_NAMED]:
            axes.plot(times, values, color=assigned[name], label=name, linewidth=1.8, marker="." if count < 60 else "")
        axes.set_ylim(bottom=0)
        for phase, index in (phases or {}).items():
            _mark_phase(axes, phase, times[index], {name: values[index] for name, values in volumes_ml.items()})
        axes.set(xlabel="frame" if times_ms is None else "time, ms", ylabel="volume, ml")
        if times_ms is None:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return draw_png(figure, background="white")


def _mark_phase(axes: Axes, phase: str, time: float, volumes_ml: Mapping[str, float]) -> None:
    """Mark a phase by a line, its name and the ventricles' volumes."""
    axes.axvline(time, color="#7b8794", linewidth=1, linestyle="dashed", zorder=1)
    axes.text(time, 1.01, phase, transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=9)
    for value in (volumes_ml[name] for name in CHAMBERS if name in volumes_ml):
        axes.annotate(f"{value:.0f} ml", (time, value), xytext=(4, 5), textcoords="offset points", fontsize=8)


def _group_dice(rows: Sequence[ScoreRow]) -> dict[tuple[str, str], list[float]]:
    """Return the Dice of each structure and phase.

    Too many of them are in order of their mean.
    """
    structures, phases = dict.fromkeys(row.structure for row in rows), sorted({row.phase or "" for row in rows})
    boxes: dict[tuple[str, str], list[float]] = {}
    if len(structures) * len(phases) <= MOST_BOXES:
        boxes = {(structure, phase): [] for structure in structures for phase in phases}
    for row in rows:
        boxes.setdefault((row.structure, row.phase or ""), []).append(row.dice)
    if len(boxes) <= MOST_BOXES:
        return boxes
    means = {group: moments(values).mean for group, values in boxes.items()}
    return {
        group: boxes[group] for group in sorted(boxes, key=lambda group: (means[group] is None, means[group] or 0.0))
    }


def _draw_dots_and_box(axes: Axes, position: int, values: np.ndarray, colour: str, *, horizontal: bool) -> None:
    values = np.sort(values[np.isfinite(values)])
    if not values.size:
        return
    # Neighbours in rank are on opposite sides: equal scores do not hide each other, without random jitter.
    aside = 0.16 * np.resize([-1.0, 0.4, -0.4, 1.0, 0.0], values.size)
    axes.boxplot(
        values,
        positions=[position],
        orientation="horizontal" if horizontal else "vertical",
        widths=0.62,
        showfliers=False,
        manage_ticks=False,
        patch_artist=True,
        boxprops={"facecolor": "#f5f7fa", "edgecolor": "#7b8794"},
        medianprops={"color": TEXT_COLOUR, "linewidth": 1.6},
        whiskerprops={"color": "#7b8794"},
        capprops={"color": "#7b8794"},
    )
    x, y = (values, position + aside) if horizontal else (position + aside, values)
    axes.scatter(x, y, s=18, color=colour, edgecolors=TEXT_COLOUR, linewidths=0.4, zorder=3)


def _select_finite_points(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """Return ``(epoch, value)`` of each row with a finite number.

    Epochs are counted from 1.
    """
    values = enumerate((row.get(key) for row in rows), start=1)
    return [(epoch, value) for epoch, value in values if isinstance(value, int | float) and np.isfinite(value)]


def _draw_curves(axes: Axes, title: str, curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    for index, (name, points) in enumerate(curves.items()):
        if points:
            epochs, values = zip(*points, strict=True)
            axes.plot(epochs, values, color=LINE_COLOURS[index % 5], label=name, marker="." if len(points) < 40 else "")
    axes.set(title=title, xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    if 1 < len(curves) <= MOST_NAMED:
        axes.legend(frameon=False, fontsize=8)
