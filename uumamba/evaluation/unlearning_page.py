"""Page on patients that a model should forget: measures, limits, plain words."""

import math
from collections.abc import Mapping
from typing import Any

from uumamba import __version__
from uumamba.evaluation.html_environment import make_environment
from uumamba.evaluation.overlays import draw_png
from uumamba.evaluation.plots import LINE_COLOURS, STYLE, TEXT_COLOUR
from uumamba.runtime.figures import Figure, draw_style

NAMES = {
    "before": "before unlearning",
    "after": "after unlearning",
    "unsmoothed": "after unlearning without smoothing",
    "retrained": "trained again without the patients",
}
_RECOGNISED = {
    True: "recognised the patients among unseen ones better than in the model trained again",
    False: "did not recognise the patients among unseen ones with certainty better than in the model trained again",
    None: "recognised the patients to a degree without an interval, so nothing is decided",
}
_FORGOTTEN = {
    True: "the observer recognises the patients as in the model trained again: the intervals by either loss include "
    "its advantage",
    False: "the observer still recognises the patients differently from the model trained again: an interval by one of "
    "the two losses does not include its advantage",
    None: "there is no interval for a single patient, so nothing is decided",
}
DICE_DROP = 0.01
"""Largest loss of Dice on unseen patients that counts as none."""


def render_unlearning_page(evidence: Mapping[str, Any], *, model: str) -> str:
    """Render the evidence of ``uumamba unlearn`` as HTML with embedded plots.

    Args:
        evidence: as in ``unlearning.json``.
        model: name of the model in the heading.
    """
    count = len(evidence["patients"])
    template = make_environment().get_template("unlearning.html.j2")
    return template.render(
        title=f"Unlearning of {count} patient{'s' * (count != 1)}: {model}",
        evidence=evidence,
        names=NAMES,
        sentences=write_findings(evidence),
        losses_plot=_plot_looks(evidence["run"]["looks"]),
        attack_plot=_plot_attack(evidence["relearning"]),
        version=__version__,
    )


def write_findings(evidence: Mapping[str, Any]) -> list[str]:
    """Write each finding as a sentence with its numbers."""
    models, findings = evidence["models"], evidence["findings"]
    drop = findings["dice_drop"]
    sentences = [
        "Before unlearning, an observer who sees the losses of the model "
        f"{_RECOGNISED[findings['was_recognised']]} ({_advantage(models['before'])}; model trained again: "
        f"{_advantage(models['retrained'])}).",
        f"After unlearning, {_FORGOTTEN[findings['is_forgotten']]} ({_advantage(models['after'])}; by the "
        f"loss of all voxels alike: {_advantage(models['after'], 'membership_by_voxel_loss')}).",
        f"Dice on unseen patients changed from {models['before']['dice']['unseen']:.3f} to "
        f"{models['after']['dice']['unseen']:.3f}, {'within' if drop <= DICE_DROP else 'more than'} the {DICE_DROP} "
        f"that counts as no loss; the model trained again has {models['retrained']['dice']['unseen']:.3f}.",
    ]
    closer = {budget: found for budget, found in findings["closer_after_attack"].items() if budget != "0"}
    if evidence["run"]["options"]["smoothing"] != "none":
        won = [budget for budget, found in closer.items() if found]
        where = f"after {', '.join(won)} steps" if won else "at none of the budgets"
        sentences.append(
            f"Under the relearning attack ({', '.join(closer)} steps) the smoothed model stayed closer to the model "
            f"trained again than the unsmoothed one {where}."
        )
    return sentences


def _advantage(model: Mapping[str, Any], key: str = "membership") -> str:
    low, high = model[key]["advantage_interval"]
    is_known = low is not None and math.isfinite(low)
    interval = f"95 % interval {low:.2f} to {high:.2f}" if is_known else "without an interval for a single patient"
    return f"advantage {model[key]['advantage']:.2f}, {interval}"


def _plot_looks(looks: list[Mapping[str, Any]]) -> bytes:
    with draw_style(STYLE):
        figure = Figure(figsize=(5.6, 3.2), dpi=130, layout="constrained")
        axes = figure.add_subplot()
        steps = [look["step"] for look in looks]
        for key, label, colour in (
            ("forget_loss", "patients to forget", LINE_COLOURS[1]),
            ("unseen_loss", "unseen patients", TEXT_COLOUR),
        ):
            axes.plot(steps, [look[key] for look in looks], marker=".", label=label, color=colour)
        axes.set(title="Loss of whole cases during unlearning", xlabel="step", ylim=(0, None))
        axes.legend(frameon=False)
        return draw_png(figure, background="white")


def _plot_attack(relearning: Mapping[str, list[Mapping[str, Any]]]) -> bytes:
    with draw_style(STYLE):
        figure = Figure(figsize=(5.6, 3.2), dpi=130, layout="constrained")
        axes = figure.add_subplot()
        for number, (name, rows) in enumerate(relearning.items()):
            budgets, areas = [row["budget"] for row in rows], [row["membership"]["auc"] for row in rows]
            axes.plot(budgets, areas, marker="o", markersize=4, label=NAMES[name], color=LINE_COLOURS[number])
        axes.axhline(0.5, color="#9aa5b1", linewidth=1, linestyle="dashed")
        axes.set(
            title="Recognition of the patients under attack", xlabel="steps of fine-tuning", ylabel="area (0.5: chance)"
        )
        axes.legend(frameon=False, fontsize=8)
        return draw_png(figure, background="white")
