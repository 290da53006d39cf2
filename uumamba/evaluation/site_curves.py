"""Curves of sites that trained together, and a drawing of their graph."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from uumamba.evaluation.overlays import draw_png
from uumamba.evaluation.plots import LINE_COLOURS, STYLE, TEXT_COLOUR
from uumamba.runtime.figures import Axes, Figure, MaxNLocator, draw_style

MOST_CURVES = 8
"""Largest number of sites with a curve each; of more, the lowest, mean and highest Dice are drawn."""
MOST_NODES = 40
"""Largest number of sites in a drawing of the graph; links of more would cover each other."""


@dataclass(frozen=True)
class SiteTraining:
    """Decentralized training of one fold.

    Attributes:
        title: name of the fold.
        graph: line that describes the graph, with its spectral gap.
        matrix: gossip matrix of shape ``(sites, sites)``, in order of the sites' names; of a schedule its mean.
        rows: rows of ``metrics.jsonl`` with ``rounds``, ``sites``, ``consensus_distance`` and ``sent_megabytes``.
    """

    title: str
    graph: str
    matrix: np.ndarray
    rows: Sequence[Mapping[str, Any]]

    @property
    def sites(self) -> list[str]:
        """Names of the sites; empty before the first validation."""
        return [*next((row["sites"] for row in self.rows if row.get("sites")), {})]

    def list_scores(self) -> list[dict[str, Any]]:
        """List each site's last Dice of the mean and its own model."""
        last: Mapping[str, Any] = next((row["sites"] for row in reversed(self.rows) if row.get("sites")), {})
        own: Mapping[str, Any] = next((row["sites_own"] for row in reversed(self.rows) if row.get("sites_own")), {})
        return [{"site": site, "dice": last.get(site), "dice_own": own.get(site)} for site in self.sites]


def plot_sites(training: SiteTraining) -> bytes:
    """Plot graph, Dice by site, consensus distance and traffic, as PNG."""
    with draw_style(STYLE):
        figure = Figure(figsize=(10.5, 3.2), dpi=130, layout="constrained")
        graph, dice, distance, traffic = figure.subplots(1, 4, width_ratios=[0.9, 1.15, 1, 1])
        _draw_graph(graph, training.sites or [str(each) for each in range(len(training.matrix))], training.matrix)
        _draw_dice(dice, training)
        _draw_line(distance, training.rows, "consensus_distance", title="Consensus distance", logarithmic=True)
        _draw_line(traffic, training.rows, "sent_megabytes", title="Sent by all sites, GB", factor=1e-3)
        return draw_png(figure, background="white")


def _draw_graph(axes: Axes, names: Sequence[str], matrix: np.ndarray) -> None:
    count = len(names)
    axes.set(title="Graph", aspect="equal", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5))
    axes.set_axis_off()
    if count > MOST_NODES:
        axes.text(0, 0, f"{count} sites", ha="center", va="center")
        return
    angles = np.pi / 2 - 2 * np.pi * np.arange(count) / count
    places = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for receiver, sender in zip(*np.nonzero(matrix), strict=True):
        if receiver != sender:
            directed = not np.isclose(matrix[receiver, sender], matrix[sender, receiver])
            axes.annotate(
                "",
                xy=places[receiver],
                xytext=places[sender],
                arrowprops={
                    "arrowstyle": "->" if directed else "-",
                    "color": "#9aa5b1",
                    "linewidth": 0.6 + 3 * matrix[receiver, sender],
                },
            )
    axes.scatter(places[:, 0], places[:, 1], s=60 if count <= MOST_CURVES else 20, color=LINE_COLOURS[0], zorder=3)
    for name, (x, y) in zip(names, places, strict=True):
        side = "center" if abs(x) < 0.2 else "left" if x > 0 else "right"
        size = 8 if count <= MOST_CURVES else 5
        axes.text(1.15 * x, 1.2 * y, name, ha=side, va="center", fontsize=size, clip_on=False)


def _draw_dice(axes: Axes, training: SiteTraining) -> None:
    found = [(row["rounds"], row["sites"]) for row in training.rows if row.get("sites")]
    rounds = [number for number, _ in found]
    curves = {site: [sites.get(site) for _, sites in found] for site in training.sites}
    curves = {site: values for site, values in curves.items() if None not in values}
    if len(curves) > MOST_CURVES:
        stacked = np.array([*curves.values()], dtype=float)
        curves = {"lowest": stacked.min(axis=0), "mean": stacked.mean(axis=0), "highest": stacked.max(axis=0)}
    for number, (site, values) in enumerate(curves.items()):
        dashes = "-" if number < len(LINE_COLOURS) else "--"
        axes.plot(rounds, values, dashes, marker=".", label=site, color=LINE_COLOURS[number % len(LINE_COLOURS)])
    axes.set(title="Dice of the mean model by site", xlabel="round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    if curves:
        axes.legend(frameon=False, fontsize=8)


def _draw_line(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    key: str,
    *,
    title: str,
    logarithmic: bool = False,
    factor: float = 1.0,
) -> None:
    points = [(row["rounds"], factor * row[key]) for row in rows if row.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), color=TEXT_COLOUR, marker="." if len(points) < 40 else "")
    axes.set(title=title, xlabel="round")
    if logarithmic and any(value > 0 for _, value in points):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    else:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
