"""Summary of scores: mean, spread and misses of each structure and phase."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from uumamba.evaluation.clinical import agreement, group_means, patient_table, why_no_patient_table
from uumamba.evaluation.means import Moments, mean_dice_of, moments
from uumamba.evaluation.scores import TREES_NAME, VESSEL_COLUMNS, WHOLE_TREE, ScoreRow, group_rows
from uumamba.evaluation.scoring import NSD_TOLERANCE_MM
from uumamba.runtime.files import write_json

SUMMARY_NAME = "summary.json"
ALL_PHASES = "all"
RULES: Mapping[str, str] = {
    "empty_masks": (
        "Exactly one mask empty is a total miss: Dice and NSD are 0, distances infinite. n_missed counts empty "
        "predictions of a labelled structure, n_spurious predictions of a structure without a label. Both masks empty: "
        "NaN, in no mean, counted in n_both_empty."
    ),
    "means": (
        "Mean and sample standard deviation over cases; n is the number of cases in them. Dice and NSD include misses "
        "as 0. Only finite distances are averaged, so read them together with n_missed and n_spurious. A "
        "patient scored at ED and ES counts twice in phase 'all'."
    ),
    "foreground_dice": "Mean over structures of each structure's mean Dice over all cases.",
    "vessels": (
        "clDice uses skeletons of one voxel's width with the topology of the mask. Betti errors are absolute "
        "differences in the number of parts (0), tunnels (1) and cavities (2); the foreground is 26-connected. The "
        "length error is the difference of the centreline lengths, prediction minus label, as a share of the label's "
        "length: a negative error is a prediction that is too short. A total miss has clDice 0, the other mask's Betti "
        "numbers as errors (small, so read them together with n_missed), and the length error -1, or infinity if the "
        "label is empty; infinity is in no mean. The length of a zone that is as wide as long means little. The whole "
        f"tree is all vessels as one mask; its rows are in {TREES_NAME} and in no mean over structures."
    ),
    "sides": (
        "The partner of a structure is the same structure on the other side of the body. A structure is swapped if its "
        "prediction shares more voxels with the partner's label than with its own label."
    ),
    "surface": "Surface voxels share a face with the outside; HD95 is the greater of the two directed percentiles.",
    "nsd": f"Normalized surface Dice with a tolerance of {NSD_TOLERANCE_MM:g} mm.",
}


@dataclass(frozen=True)
class SideSwap:
    """Structure whose prediction is at the label of its left/right partner."""

    case_id: str
    structure: str
    partner: str


@dataclass(frozen=True)
class StructureSummary:
    """Summary of one structure in one phase or in ``"all"``.

    ``vessel`` holds the moments of the vessel columns by name, and is None for other structures.
    """

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
    vessel: Mapping[str, Moments] | None = None


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
    """Predicted structures with a left/right partner: their number and the swapped ones."""

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
    """Summarise rows by structure and phase.

    Phase ``"all"`` holds every case. Phases are in the order ED, ES, then others by name; with one known phase or none
    there is only ``"all"``. Each of several domains is also summarised separately.

    Args:
        rows: rows of ``scores.csv``.
        trees: rows of ``trees.csv``; they are in no mean over structures.
    """
    phases = _list_phases(rows)
    summaries = [
        summary
        for structure, own in group_rows(rows, "structure").items()
        for summary in _summarise_structure(structure, phases, own)
    ]
    return Summary(
        n_cases=len({row.case_id for row in rows}),
        n_patients=len({row.patient_id for row in rows}),
        foreground_dice=mean_dice_of(rows).foreground,
        structures=tuple(summaries),
        whole_tree=_summarise_one(WHOLE_TREE, ALL_PHASES, trees) if trees else None,
        sides=_summarise_sides(rows),
        domains=_summarise_domains(rows),
    )


def write_summary(
    path: Path | str, rows: Sequence[ScoreRow], *, trees: Sequence[ScoreRow] = (), failed: Iterable[str] = ()
) -> None:
    """Write ``summary.json``: summary, agreement of the clinical indices, and rules.

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


def _summarise_domains(rows: Sequence[ScoreRow]) -> tuple[DomainSummary, ...]:
    """Summarise each of several domains, in order of their names.

    A single domain has no summary of its own.
    """
    by_domain = group_rows((row for row in rows if row.domain is not None), "domain")
    if len(by_domain) < 2:
        return ()
    summaries = {name: summarise(by_domain[name]) for name in sorted(by_domain)}
    return tuple(
        DomainSummary(name, each.n_cases, each.n_patients, each.foreground_dice, each.overall())
        for name, each in summaries.items()
    )


def _list_phases(rows: Sequence[ScoreRow]) -> list[str]:
    known = {row.phase for row in rows if row.phase is not None}
    return sorted(known, key=lambda phase: (phase not in ("ED", "ES"), phase)) if len(known) > 1 else []


def _summarise_structure(structure: str, phases: Sequence[str], rows: Sequence[ScoreRow]) -> list[StructureSummary]:
    by_phase = group_rows(rows, "phase") | {ALL_PHASES: rows}
    return [_summarise_one(structure, phase, by_phase.get(phase, ())) for phase in (*phases, ALL_PHASES)]


def _summarise_one(structure: str, phase: str, chosen: Sequence[ScoreRow]) -> StructureSummary:
    vessels = [row for row in chosen if row.is_vessel]
    masks = [(row.volume_ml > 0, row.label_volume_ml > 0) for row in chosen]
    return StructureSummary(
        structure=structure,
        phase=phase,
        n_cases=len(chosen),
        n_missed=masks.count((False, True)),
        n_spurious=masks.count((True, False)),
        n_both_empty=masks.count((False, False)),
        dice=_compute_column_moments(chosen, "dice"),
        hd95_mm=_compute_column_moments(chosen, "hd95_mm"),
        nsd=_compute_column_moments(chosen, "nsd"),
        assd_mm=_compute_column_moments(chosen, "assd_mm"),
        vessel={column: _compute_column_moments(vessels, column) for column in VESSEL_COLUMNS} if vessels else None,
    )


def _compute_column_moments(rows: Sequence[ScoreRow], column: str) -> Moments:
    return moments(value for row in rows if (value := getattr(row, column)) is not None)


def _summarise_sides(rows: Sequence[ScoreRow]) -> SideSummary | None:
    """Count and list swapped structures; None if no structure has a partner."""
    paired = [row for row in rows if row.partner is not None]
    if not paired:
        return None
    swapped = (SideSwap(row.case_id, row.structure, str(row.partner)) for row in paired if row.is_swapped)
    return SideSummary(n_checked=sum(row.volume_ml > 0 for row in paired), swapped=tuple(swapped))
