"""Volumes of all predicted cases: ``volumes.csv``, ``volumes.json`` and plots.

They are made from the records in the output folder, so they also hold the cases of earlier calls.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uumamba.pipelines.prediction.case_record import CaseRecord, read_records
from uumamba.runtime.files import make_folder, whole_file, write_json

TABLE_NAME, JSON_NAME, CURVES_NAME = "volumes.csv", "volumes.json", "curves"
INDEX_COLUMNS = ("edv_ml", "esv_ml", "sv_ml", "ef_percent", "mass_g")
COLUMNS = ("case_id", "patient_id", "frame", "time_ms", "phase", "structure", "volume_ml", *INDEX_COLUMNS)
MOST_LINES, MOST_STRUCTURES = 20, 4
_DECIMALS = 3


@dataclass(frozen=True)
class CaseIndices:
    """Clinical indices of a cine, or of a patient's still scans.

    Attributes:
        patient_id: the patient; the case id if the patient is unknown.
        case_ids: case of each phase.
        indices: as of :func:`uumamba.evaluation.clinical.clinical_indices`; None instead of NaN.
    """

    patient_id: str
    case_ids: Mapping[str, str]
    indices: Mapping[str, float | None]


def write_volume_tables(out: Path) -> None:
    """Write ``volumes.csv`` and ``volumes.json`` from all records.

    The table has one row for each case, frame and structure: ``case_id``, ``patient_id`` (empty if unknown), ``frame``
    (from 1), ``time_ms``, ``phase`` (ED or ES), ``structure``, ``volume_ml``. The row of a structure at end diastole
    also has ``edv_ml``, ``esv_ml``, ``sv_ml`` and ``ef_percent`` of LV and RV, and ``mass_g`` of MYO, so that a column
    holds each patient once. The same numbers are in the JSON file, with the warnings of each case.
    """
    from uumamba.evaluation.scores import write_csv  # here, because evaluation imports scipy and rich

    records = list(read_records(out).values())
    indices = find_indices(records)
    write_csv(out / TABLE_NAME, COLUMNS, _list_rows(records, indices))
    write_json(out / JSON_NAME, _to_json(records, indices))


def find_indices(records: Sequence[CaseRecord]) -> list[CaseIndices]:
    """Compute the clinical indices of each cine, and each patient's still scans.

    Still scans belong together if their patient and model are the same. A patient with two scans of one phase has no
    indices, since it is unknown which belong together.
    """
    from uumamba.evaluation.clinical import clinical_indices  # here, because evaluation imports scipy and rich

    groups: dict[tuple[str, ...], list[tuple[str, CaseRecord, int]]] = {}
    for record in records:
        is_still = len(record.volumes_ml) == 1 and record.patient_id is not None
        key = (str(record.patient_id), record.model) if is_still else (record.case_id,)
        groups.setdefault(key, []).extend((phase, record, index) for phase, index in record.phases.items())
    found = []
    for members in groups.values():
        phases = [phase for phase, _, _ in members]
        if "ED" not in phases or len(phases) != len(set(phases)):
            continue
        volumes = {
            (structure, phase): volume_ml
            for phase, record, index in members
            for structure, volume_ml in record.volumes_ml[index].items()
        }
        indices = {name: None if np.isnan(value) else value for name, value in clinical_indices(volumes).items()}
        first = members[phases.index("ED")][1]
        case_ids = {phase: record.case_id for phase, record, _ in members}
        found.append(CaseIndices(first.patient_id or first.case_id, case_ids, indices))
    return found


def describe_volumes(records: Sequence[CaseRecord]) -> Iterator[str]:
    """Describe the volumes of some cases, one line a case."""
    by_case = {each.case_ids["ED"]: each for each in find_indices(records)}
    for record in records[:MOST_LINES]:
        yield f"{record.case_id}: {', '.join(_describe(record, by_case.get(record.case_id)))}"
    if len(records) > MOST_LINES:
        yield f"and {len(records) - MOST_LINES} more cases"


def _describe(record: CaseRecord, found: CaseIndices | None) -> Iterator[str]:
    count = len(record.volumes_ml)
    if count > 1:
        yield f"{count} frames"
        yield from (f"{phase} in frame {index + 1}" for phase, index in record.phases.items())
        yield from () if record.phases else _describe_ranges(record)
    else:
        yield from record.phases
        volumes = list(record.volumes_ml[0].items())
        yield from (f"{name} {volume_ml:.1f} ml" for name, volume_ml in volumes[:MOST_STRUCTURES])
        if len(volumes) > MOST_STRUCTURES:
            yield f"{len(volumes) - MOST_STRUCTURES} more structures"
    names = {
        "edv_ml": "EDV {:.1f} ml",
        "esv_ml": "ESV {:.1f} ml",
        "ef_percent": "EF {:.1f} %",
        "mass_g": "mass {:.1f} g",
    }
    for name, value in found.indices.items() if found else ():
        chamber, _, index = name.partition("_")
        if value is not None and index in names and (count > 1 or index in ("ef_percent", "mass_g")):
            yield f"{chamber.upper()} {names[index].format(value)}"
    if record.warnings:
        yield f"{len(record.warnings)} warnings" if len(record.warnings) > 1 else "1 warning"


def _describe_ranges(record: CaseRecord) -> Iterator[str]:
    for name in [*record.volumes_ml[0]][:MOST_STRUCTURES]:
        volumes_ml = [volumes[name] for volumes in record.volumes_ml]
        yield f"{name} {min(volumes_ml):.1f} to {max(volumes_ml):.1f} ml"


def write_volume_plot(out: Path, record: CaseRecord) -> None:
    """Write the volume curve of a cine, ``curves/<case_id>.png``."""
    if len(record.volumes_ml) == 1 or not record.volumes_ml[0]:
        return
    from uumamba.evaluation.plots import plot_volume_curve  # here, because matplotlib is needed for cines only

    curves = {name: [volumes[name] for volumes in record.volumes_ml] for name in record.volumes_ml[0]}
    png = plot_volume_curve(curves, phases=record.phases, times_ms=record.times_ms)
    make_folder(out / CURVES_NAME)
    with whole_file(find_curve(out, record.case_id)) as unfinished:
        unfinished.write_bytes(png)


def find_curve(out: Path, case_id: str) -> Path:
    """Return the path of a cine's volume curve, which may be absent."""
    return out / CURVES_NAME / f"{case_id}.png"


def _list_rows(records: Sequence[CaseRecord], indices: Sequence[CaseIndices]) -> Iterator[list[Any]]:
    by_case = {each.case_ids["ED"]: each.indices for each in indices}
    for record in records:
        phase_of = {index: phase for phase, index in record.phases.items()}
        for index, volumes in enumerate(record.volumes_ml):
            phase, time_ms = phase_of.get(index), None if record.times_ms is None else record.times_ms[index]
            for structure, volume_ml in volumes.items():
                own = by_case.get(record.case_id, {}) if phase == "ED" else {}
                yield [
                    record.case_id,
                    record.patient_id,
                    index + 1,
                    _round(time_ms),
                    phase,
                    structure,
                    _round(volume_ml),
                    *(_round(own.get(name)) for name in _name_indices(structure)),
                ]


def _name_indices(structure: str) -> tuple[str, ...]:
    """Return the name of each column's index; empty if it has none."""
    prefix = "lv" if structure == "MYO" else structure.lower()
    columns = {"MYO": ("mass_g",), "LV": INDEX_COLUMNS[:4], "RV": INDEX_COLUMNS[:4]}.get(structure, ())
    return tuple(f"{prefix}_{column}" if column in columns else "" for column in INDEX_COLUMNS)


def _to_json(records: Sequence[CaseRecord], indices: Sequence[CaseIndices]) -> dict[str, Any]:
    return {
        "cases": [
            {
                "case_id": record.case_id,
                "patient_id": record.patient_id,
                "model": record.model,
                "label": record.label,
                "phases": {phase: index + 1 for phase, index in record.phases.items()},
                "frames": [
                    {
                        "frame": index + 1,
                        "time_ms": None if record.times_ms is None else _round(record.times_ms[index]),
                        "volumes_ml": {name: _round(volume_ml) for name, volume_ml in volumes.items()},
                    }
                    for index, volumes in enumerate(record.volumes_ml)
                ],
                "warnings": list(record.warnings),
            }
            for record in records
        ],
        "patients": [
            {"patient_id": each.patient_id, "case_ids": dict(each.case_ids)}
            | {name: _round(value) for name, value in each.indices.items()}
            for each in indices
        ],
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, _DECIMALS)
