"""Summary of scores: mean, spread and misses of each structure and phase."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from uumamba.evaluation.clinical import agreement, group_means, patient_table, why_no_patient_table
from uumamba.evaluation.means import Moments, mean_dice_of, moments
from uumamba.evaluation.scores import TREES_NAME, WHOLE_TREE, ScoreRow
from uumamba.evaluation.scoring import NSD_TOLERANCE_MM
from uumamba.runtime.files import write_json

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
    "vessels": (
        "clDice by skeletons of one voxel's width that keep the topology. Betti errors are absolute differences in the "
        "number of parts (0), tunnels (1) and cavities (2), foreground joined by 26 neighbours. The length error is "
        "how much longer the prediction's centreline is than the label's, as a share of the label's: negative is too "
        "short. A total miss has clDice 0, the other mask's own Betti numbers as errors (little: read them together "
        "with n_missed), and the length error -1, or infinity where the label is empty, which is in no mean. The "
        "length of a zone that is no longer than it is wide says little. Where there are several vessels, the whole "
        f"tree is all of them as one mask; its rows stand in {TREES_NAME}, and in no mean over structures."
    ),
    "sides": (
        "A structure lies on its partner's side where its prediction shares more voxels with the label of the same "
        "structure on the other side of the body than with its own label."
    ),
    "surface": "Surface voxels share a face with the outside; HD95 is the greater of the two directed percentiles.",
    "nsd": f"Normalized surface Dice with a tolerance of {NSD_TOLERANCE_MM:g} mm.",
}


@dataclass(frozen=True)
class VesselSummary:
    """Moments of the vessel columns."""

    cl_dice: Moments
    betti0_error: Moments
    betti1_error: Moments
    betti2_error: Moments
    length_error: Moments


@dataclass(frozen=True)
class SideSwap:
    """Structure predicted at the label of its partner on the other side of the body."""

    case_id: str
    structure: str
    partner: str

    def __str__(self) -> str:
        return f"{self.case_id}: {self.structure} lies where {self.partner} is labelled"


@dataclass(frozen=True)
class StructureSummary:
    """Summary of one structure in one phase or in ``"all"``."""

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
    vessel: VesselSummary | None = None


@dataclass(frozen=True)
class DomainSummary:
    """Summary of one domain (vendor, centre or data set) over all phases."""

    domain: str
    n_cases: int
    n_patients: int
    foreground_dice: float | None
    structures: tuple[StructureSummary, ...]


@dataclass(frozen=True)
class SideSummary:
    """Number of predicted structures with a left/right partner, and those on the wrong side."""

    n_checked: int
    swapped: tuple[SideSwap, ...]


@dataclass(frozen=True)
class Summary:
    """Summary of ``scores.csv`` and ``trees.csv``, as in ``summary.json``."""

    n_cases: int
    n_patients: int
    foreground_dice: float | None
    structures: tuple[StructureSummary, ...]
    whole_tree: StructureSummary | None = None
    sides: SideSummary | None = None
    domains: tuple[DomainSummary, ...] = ()

    def overall(self) -> tuple[StructureSummary, ...]:
        """Return the structures over all phases."""
        return tuple(row for row in self.structures if row.phase == ALL_PHASES)

    def vessels(self) -> tuple[StructureSummary, ...]:
        """Return the vessels over all phases, and the whole tree last."""
        return tuple(row for row in (*self.overall(), self.whole_tree) if row is not None and row.vessel is not None)


def summarise(rows: Sequence[ScoreRow], trees: Sequence[ScoreRow] = ()) -> Summary:
    """Summarise rows by structure and phase; phase ``"all"`` takes every case.

    Phases are in the order ED, ES, then others by name; with one known phase or none there is only ``"all"``. Each of
    several domains is also summarised separately.

    Args:
        rows: rows of ``scores.csv``.
        trees: rows of ``trees.csv``; they are in no mean over structures.
    """
    summaries = [
        _summarise_one(structure, phase, [row for row in rows if row.structure == structure])
        for structure in dict.fromkeys(row.structure for row in rows)
        for phase in (*_phases(rows), ALL_PHASES)
    ]
    return Summary(
        n_cases=len({row.case_id for row in rows}),
        n_patients=len({row.patient_id for row in rows}),
        foreground_dice=mean_dice_of(rows).foreground,
        structures=tuple(summaries),
        whole_tree=_summarise_one(WHOLE_TREE, ALL_PHASES, trees) if trees else None,
        sides=_sides(rows),
        domains=_domains(rows),
    )


def write_summary(
    path: Path | str, rows: Sequence[ScoreRow], *, trees: Sequence[ScoreRow] = (), failed: Iterable[str] = ()
) -> None:
    """Write ``summary.json``: the summary, agreement of the clinical indices, and the rules behind them.

    Args:
        path: the file.
        rows: rows of ``scores.csv``.
        trees: rows of ``trees.csv``.
        failed: ids of cases that could not be scored.
    """
    missing, patients = why_no_patient_table(rows), patient_table(rows)
    clinical: dict[str, Any] = {"agreement": agreement(patients), "groups": group_means(patients)}
    clinical = {"left_out": missing} if missing else clinical
    write_json(
        path, asdict(summarise(rows, trees)) | {"clinical": clinical, "failed": sorted(failed), "rules": dict(RULES)}
    )


def _domains(rows: Sequence[ScoreRow]) -> tuple[DomainSummary, ...]:
    """Return the summary of each domain by name; empty for one domain, which the whole summary describes."""
    known = sorted({row.domain for row in rows if row.domain is not None})
    if len(known) < 2:
        return ()
    alone = {name: summarise([row for row in rows if row.domain == name]) for name in known}
    return tuple(
        DomainSummary(name, each.n_cases, each.n_patients, each.foreground_dice, each.overall())
        for name, each in alone.items()
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
        vessel=_summarise_vessel([row for row in chosen if row.is_vessel]),
    )


def _summarise_vessel(rows: Sequence[ScoreRow]) -> VesselSummary | None:
    if not rows:
        return None
    values = ([getattr(row, field.name) for row in rows] for field in fields(VesselSummary))
    return VesselSummary(*(moments(value for value in column if value is not None) for column in values))


def _sides(rows: Sequence[ScoreRow]) -> SideSummary | None:
    """Return None if no structure has a partner."""
    paired = [row for row in rows if row.partner is not None]
    if not paired:
        return None
    swapped = (SideSwap(row.case_id, row.structure, str(row.partner)) for row in paired if row.lies_on_partner)
    return SideSummary(n_checked=sum(row.volume_ml > 0 for row in paired), swapped=tuple(swapped))
