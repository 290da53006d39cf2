"""The report's plots, each as PNG bytes: Dice by structure, the training curve, agreement of ejection fractions."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from uumamba.evaluation.clinical import PatientIndices, agreement
from uumamba.evaluation.overlays import colours_of
from uumamba.evaluation.scores import ScoreRow

INK = "#1f2933"
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
MOST_STANDING = 14
"""More boxes than these would have names that run into each other, so they lie down."""
MOST_NAMED = 8
"""Curves with a legend; of more, as several seeds of five folds have, it would hide them."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
}


def plot_dice(rows: Sequence[ScoreRow]) -> bytes:
    """One dot a case and a box of the quartiles, by structure and phase; the boxes lie down where they are many."""
    structures = list(dict.fromkeys(row.structure for row in rows))
    colours = colours_of(structures)
    phases = sorted({row.phase or "" for row in rows})
    groups = [(structure, phase) for structure in structures for phase in phases]
    with mpl.rc_context(STYLE):
        lying = len(groups) > MOST_STANDING
        size = (9.0, 0.6 + 0.27 * len(groups)) if lying else (9.0, 3.6)
        figure = Figure(figsize=size, dpi=130, layout="constrained")
        axes = figure.add_subplot()
        for position, (structure, phase) in enumerate(groups):
            values = [row.dice for row in rows if (row.structure, row.phase or "") == (structure, phase)]
            _strip(axes, position, np.array(values), colours[structure], lying=lying)
        if lying:
            axes.set_yticks(range(len(groups)), [f"{structure} {phase}".strip() for structure, phase in groups])
            axes.set(ylim=(len(groups) - 0.4, -0.6), xlabel="Dice")
        else:
            axes.set_xticks(range(len(groups)), [f"{structure}\n{phase}".strip() for structure, phase in groups])
            axes.set(xlim=(-0.6, len(groups) - 0.4), ylabel="Dice")
        axes.grid(visible=False, axis="y" if lying else "x")
        return _png(figure)


def plot_training(folds: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Training loss, validation Dice and learned loss weights against the epoch (from 1), one line a fold.

    Args:
        folds: each fold's ``metrics.jsonl``, one row an epoch, with ``loss``, ``dice`` where validated, and
            ``loss_weights`` by term where they are learned. Panels without a number are left out.
    """
    terms = sorted({term for rows in folds.values() for row in rows for term in row.get("loss_weights") or {}})
    panels = {
        "Training loss": {fold: _points(rows, "loss") for fold, rows in folds.items()},
        "Validation Dice": {fold: _points(rows, "dice") for fold, rows in folds.items()},
        "Weights of the loss terms": {
            term if len(folds) == 1 else f"{term}, {fold}": _points(
                [row.get("loss_weights") or {} for row in rows], term
            )
            for fold, rows in folds.items()
            for term in terms
        },
    }
    drawn = {title: curves for title, curves in panels.items() if any(curves.values())}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.0), dpi=130, layout="constrained")
        for number, (title, curves) in enumerate(drawn.items(), start=1):
            _draw_curves(figure.add_subplot(1, len(drawn), number), title, curves)
        return _png(figure)


def plot_ejection_fraction(patients: Sequence[PatientIndices], index: str = "lv_ef_percent") -> bytes:
    """Predicted against labelled ejection fraction, and their difference against their mean (Bland-Altman)."""
    groups = sorted({patient.group or "" for patient in patients})
    chamber = index[:2].upper()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.8), dpi=130, layout="constrained")
        against, differences = figure.subplots(1, 2)
        for number, group in enumerate(groups):
            members = [patient for patient in patients if (patient.group or "") == group]
            label = np.array([patient.label[index] for patient in members])
            prediction = np.array([patient.prediction[index] for patient in members])
            style = {"marker": MARKERS[number % 7], "color": LINE_COLOURS[number % 5], "label": group, "alpha": 0.85}
            against.scatter(label, prediction, s=26, linewidths=0, **style)
            differences.scatter((label + prediction) / 2, prediction - label, s=26, linewidths=0, **style)
        _identity_line(against)
        against.set(
            xlabel=f"{chamber} EF from the label, %", ylabel="from the prediction, %", title="Prediction and label"
        )
        _limits(differences, agreement(patients)[index])
        differences.set(
            xlabel="mean of both, %", ylabel="prediction - label, points", title="Difference (Bland-Altman)"
        )
        if groups != [""]:
            against.legend(frameon=False, fontsize=8, loc="upper left")
        return _png(figure)


def _strip(axes: Axes, position: int, values: np.ndarray, colour: str, *, lying: bool) -> None:
    values = np.sort(values[np.isfinite(values)])
    if not values.size:
        return
    # Neighbours in rank go to opposite sides, so equal scores do not hide each other and nothing is drawn by chance.
    aside = 0.16 * np.resize([-1.0, 0.4, -0.4, 1.0, 0.0], values.size)
    axes.boxplot(
        values,
        positions=[position],
        orientation="horizontal" if lying else "vertical",
        widths=0.62,
        showfliers=False,
        manage_ticks=False,
        patch_artist=True,
        boxprops={"facecolor": "#f5f7fa", "edgecolor": "#7b8794"},
        medianprops={"color": INK, "linewidth": 1.6},
        whiskerprops={"color": "#7b8794"},
        capprops={"color": "#7b8794"},
    )
    x, y = (values, position + aside) if lying else (position + aside, values)
    axes.scatter(x, y, s=18, color=colour, edgecolors=INK, linewidths=0.4, zorder=3)


def _identity_line(axes: Axes) -> None:
    low, high = min(axes.get_xlim()[0], axes.get_ylim()[0]), max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([low, high], [low, high], color="#9aa5b1", linewidth=1, zorder=0)
    axes.set_aspect("equal")


def _limits(axes: Axes, agreed: Mapping[str, Any]) -> None:
    if agreed["limits"] is None:
        return
    axes.axhline(agreed["bias"], color=INK, linewidth=1.2)
    for limit in agreed["limits"]:
        axes.axhline(limit, color=INK, linewidth=1, linestyle="dashed")


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """Epoch, counted from 1, and value, where there is one."""
    return [(epoch, row[key]) for epoch, row in enumerate(rows, start=1) if _is_number(row.get(key))]


def _draw_curves(axes: Axes, title: str, curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    for index, (name, points) in enumerate(curves.items()):
        if points:
            epochs, values = zip(*points, strict=True)
            marker = "." if len(points) < 40 else ""
            axes.plot(epochs, values, color=LINE_COLOURS[index % 5], label=name, marker=marker)
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    if 1 < len(curves) <= MOST_NAMED:
        axes.legend(frameon=False, fontsize=8)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _png(figure: Figure) -> bytes:
    with io.BytesIO() as stream:
        figure.savefig(stream, format="png", facecolor="white")
        return stream.getvalue()
