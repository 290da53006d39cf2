"""The summary of scores: mean and spread for each structure and phase, with every miss counted."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uumamba.evaluation.clinical import agreement, group_means, patient_table, why_no_patient_table
from uumamba.evaluation.scores import NSD_TOLERANCE_MM, ScoreRow
from uumamba.files import write_json

SUMMARY_NAME = "summary.json"
ALL_PHASES = "all"
RULES: Mapping[str, str] = {
    "empty_masks": (
        "Exactly one mask empty is a total miss: Dice and NSD are 0, distances infinite. n_missed counts labels with "
        "voxels that the prediction lacks, n_spurious predictions of what the label lacks. Both masks empty: NaN, in "
        "no mean, counted in n_both_empty."
    ),
    "means": (
        "Mean and sample standard deviation over cases; n is the number of cases in them. Dice and NSD include misses "
        "as 0. Distances are averaged where they are finite, so read them together with n_missed and n_spurious. A "
        "patient scored at ED and ES counts twice in phase 'all'."
    ),
    "foreground_dice": "Mean over structures of each structure's mean Dice over all cases.",
    "surface": "Surface voxels share a face with the outside; HD95 is the greater of the two directed percentiles.",
    "nsd": f"Normalized surface Dice with a tolerance of {NSD_TOLERANCE_MM:g} mm.",
}


@dataclass(frozen=True)
class Moments:
    """Mean, sample standard deviation and number of the finite values; None where they are undefined."""

    mean: float | None
    sd: float | None
    n: int


@dataclass(frozen=True)
class StructureSummary:
    """One structure in one phase (or in ``"all"``)."""

    structure: str
    phase: str
    n_cases: int
    n_missed: int
    n_spurious: int
    n_both_empty: int
    dice: Moments
    hd95_mm: Moments
    nsd: Moments
    assd_mm: Moments


@dataclass(frozen=True)
class Summary:
    """What ``summary.json`` says of the rows of ``scores.csv``."""

    n_cases: int
    n_patients: int
    foreground_dice: float | None
    structures: tuple[StructureSummary, ...]

    def overall(self) -> tuple[StructureSummary, ...]:
        """The structures over all phases."""
        return tuple(row for row in self.structures if row.phase == ALL_PHASES)


def summarise(rows: Sequence[ScoreRow]) -> Summary:
    """Summarise rows by structure and phase; phase ``"all"`` takes every case.

    Phases stand in the order ED, ES, then others by name. Where only one phase is known, or none, there is ``"all"``
    alone.
    """
    structures = list(dict.fromkeys(row.structure for row in rows))
    summaries = [
        _summarise_one(structure, phase, [row for row in rows if row.structure == structure])
        for structure in structures
        for phase in (*_phases(rows), ALL_PHASES)
    ]
    means = [s.dice.mean for s in summaries if s.phase == ALL_PHASES and s.dice.mean is not None]
    return Summary(
        n_cases=len({row.case_id for row in rows}),
        n_patients=len({row.patient_id for row in rows}),
        foreground_dice=float(np.mean(means)) if means else None,
        structures=tuple(summaries),
    )


def write_summary(path: Path | str, rows: Sequence[ScoreRow], *, failed: Iterable[str] = ()) -> None:
    """Write ``summary.json``: the summary, agreement of the clinical indices, and the rules behind them.

    Args:
        path: the file.
        rows: those of ``scores.csv``; every number here is made from them.
        failed: ids of cases that could not be scored.
    """
    missing = why_no_patient_table(rows)
    patients = patient_table(rows)
    clinical: dict[str, Any] = {"left_out": missing} if missing else {}
    if not missing:
        clinical = {"agreement": agreement(patients), "groups": group_means(patients)}
    write_json(path, asdict(summarise(rows)) | {"clinical": clinical, "failed": sorted(failed), "rules": dict(RULES)})


def moments(values: Iterable[float]) -> Moments:
    """Moments of the finite values.

    Example:
        >>> moments([1.0, 3.0, float("inf"), float("nan")])
        Moments(mean=2.0, sd=1.4142135623730951, n=2)
    """
    finite = [value for value in values if math.isfinite(value)]
    return Moments(
        mean=float(np.mean(finite)) if finite else None,
        sd=float(np.std(finite, ddof=1)) if len(finite) > 1 else None,
        n=len(finite),
    )


def _phases(rows: Sequence[ScoreRow]) -> list[str]:
    known = {row.phase for row in rows if row.phase is not None}
    return sorted(known, key=lambda phase: (phase not in ("ED", "ES"), phase)) if len(known) > 1 else []


def _summarise_one(structure: str, phase: str, rows: Sequence[ScoreRow]) -> StructureSummary:
    chosen = [row for row in rows if phase in (ALL_PHASES, row.phase)]
    found, there = [row.volume_ml > 0 for row in chosen], [row.label_volume_ml > 0 for row in chosen]
    masks = list(zip(found, there, strict=True))
    return StructureSummary(
        structure=structure,
        phase=phase,
        n_cases=len(chosen),
        n_missed=masks.count((False, True)),
        n_spurious=masks.count((True, False)),
        n_both_empty=masks.count((False, False)),
        dice=moments(row.dice for row in chosen),
        hd95_mm=moments(row.hd95_mm for row in chosen),
        nsd=moments(row.nsd for row in chosen),
        assd_mm=moments(row.assd_mm for row in chosen),
    )
