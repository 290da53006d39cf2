"""Card of a shipped heart model: use, data, figures, limits and licence."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.acdc_scores import STRUCTURES, summarize_scores
from uumamba.evaluation import patient_table
from uumamba.evaluation.clinical import agreement
from uumamba.evaluation.scores import ScoreRow, group_rows

INDICES = {
    "lv_ef_percent": "LV ejection fraction, points",
    "rv_ef_percent": "RV ejection fraction, points",
    "lv_edv_ml": "LV volume at ED, ml",
    "lv_esv_ml": "LV volume at ES, ml",
    "rv_edv_ml": "RV volume at ED, ml",
    "lv_mass_g": "LV mass, g",
}
FAILED_DICE = 0.7


def make_card(
    name: str, config: Mapping[str, Any], rows: Sequence[ScoreRow], *, parameters: int, size_mb: float, commit: str
) -> str:
    """Make the card from the scores of fold 0's validation patients.

    Args:
        name: name of the model.
        config: configuration in its checkpoint.
        rows: scores of a run with the same configuration that was trained without fold 0.
        parameters: number of weights.
        size_mb: size of the weights' file.
        commit: commit of the program.
    """
    run, scores = config["run"], summarize_scores(rows)
    patients = "the public training patients" + ("" if config["fold"] == "all" else ", without fold 0,")
    kept = ", ".join(run["inference"]["postprocess"] or ["nothing"])
    return f"""# {name}

Segmentation of {", ".join(config["structures"])} in frames and cines of short-axis cine MRI:
`uumamba predict {name} --input SCAN --out OUT`.

- **Use**: research on hearts, as a start for contours that a person corrects. It is no medical device, and not for
  diagnosis: look at each result.
- **Network**: {run["net"]["name"]}, {parameters / 1e6:.1f} million parameters, float16, {size_mb:.1f} MB;
  {run["preprocess"]["spacing_mm"][-1]:g} mm in plane; largest components of {kept}.
- **Data**: {patients} of {config["dataset"]}, ED and ES frames. {config["reference"]}
- **Licence of the weights**: {config["licence"]}, inherited from the data. See `LICENSE`.
- **Figures**: the same configuration trained without fold 0, scored on the native grids of fold 0's
  {len({row.patient_id for row in rows})} patients (ED and ES): mean Dice {scores["dice"]:.3f}.

{tabulate_structures(rows)}
{tabulate_groups(rows)}
{tabulate_agreement(rows)}
- **Known failures**: {describe_failures(rows)}
- **Limits**: one hospital, 1.5 T and 3 T scanners of one vendor. Not for other views, contrasts or modalities. The
  outermost slices at base and apex are the least certain.
- **Origin**: uumamba, commit {commit}; the complete configuration is in the weights file.
"""


def tabulate_structures(rows: Sequence[ScoreRow]) -> str:
    """Tabulate Dice and HD95 by structure and phase."""
    header = ["structure", "Dice", "Dice at ED", "Dice at ES", "HD95 mm", "HD95 mm at ED", "HD95 mm at ES"]
    lines = []
    for name in STRUCTURES:
        own = [row for row in rows if row.structure == name]
        parts = [own, *([row for row in own if row.phase == phase] for phase in ("ED", "ES"))]
        dice = [f"{_mean(part, lambda row: row.dice):.3f}" for part in parts]
        lines.append([name, *dice, *(f"{_mean(part, lambda row: row.hd95_mm):.1f}" for part in parts)])
    return _make_table(header, lines)


def tabulate_groups(rows: Sequence[ScoreRow]) -> str:
    """Tabulate the mean Dice of each diagnosis; empty if none is known."""
    groups = group_rows((row for row in rows if row.group is not None and row.structure in STRUCTURES), "group")
    lines = [
        [
            group,
            f"{len({row.patient_id for row in own})}",
            *(
                f"{_mean([row for row in own if row.structure == name], lambda row: row.dice):.3f}"
                for name in STRUCTURES
            ),
        ]
        for group, own in sorted(groups.items())
    ]
    return _make_table(["group", "patients", *(f"Dice of {name}" for name in STRUCTURES)], lines) if lines else ""


def tabulate_agreement(rows: Sequence[ScoreRow]) -> str:
    """Tabulate bias, limits of agreement and mean absolute difference."""
    found = agreement(patient_table(rows))
    lines = [
        [
            text,
            f"{found[key]['bias']:+.1f}",
            "-" if found[key]["limits"] is None else "{:+.1f} to {:+.1f}".format(*found[key]["limits"]),
            f"{found[key]['mean_absolute']:.1f}",
        ]
        for key, text in INDICES.items()
        if key in found and found[key]["bias"] is not None
    ]
    return _make_table(["index", "bias", "95 % limits of agreement", "mean absolute"], lines) if lines else ""


def describe_failures(rows: Sequence[ScoreRow]) -> str:
    """Name the cases of fold 0 with a structure of low Dice."""
    failed = [row for row in rows if row.structure in STRUCTURES and row.dice < FAILED_DICE]
    if not failed:
        return f"in fold 0 no structure of a frame has a Dice below {FAILED_DICE:g}."
    listed = ", ".join(f"{row.structure} of {row.case_id} ({row.dice:.2f})" for row in failed)
    return f"in fold 0 these have a Dice below {FAILED_DICE:g}: {listed}."


def _mean(rows: Sequence[ScoreRow], read: Callable[[ScoreRow], float]) -> float:
    values = [read(row) for row in rows if math.isfinite(read(row))]
    return fmean(values) if values else math.nan


def _make_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, rule, *lines))
