"""Clinical indices of each patient's ventricles, from predicted and labelled volumes."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from uumamba.evaluation.means import moments
from uumamba.evaluation.scores import ScoreRow, group_rows, write_csv

PATIENTS_NAME = "patients.csv"
MYOCARDIUM_G_PER_ML = 1.05
CHAMBERS = ("LV", "RV")
MYOCARDIUM = "MYO"
# Made once, because the names of 30,000 patients would need 30 MB.
_INDEX_NAMES = {
    name: tuple(f"{name.lower()}_{each}" for each in ("edv_ml", "esv_ml", "sv_ml", "ef_percent")) for name in CHAMBERS
}

Volumes = Mapping[tuple[str, str], float]
"""Millilitres by (structure, phase)."""


@dataclass(frozen=True, slots=True)
class PatientIndices:
    """Clinical indices of a patient, from prediction and from label.

    Keys are the names of :func:`clinical_indices`, such as ``lv_edv_ml`` or ``rv_ef_percent``.
    """

    patient_id: str
    group: str | None
    prediction: Mapping[str, float]
    label: Mapping[str, float]

    def difference(self, index: str) -> float:
        """Return prediction minus label."""
        return self.prediction[index] - self.label[index]


def clinical_indices(volumes: Volumes) -> dict[str, float]:
    r"""Compute volumes and ejection fraction of each chamber, and left-ventricular mass.

    .. math:: \mathrm{SV} = \mathrm{EDV} - \mathrm{ESV}, \quad \mathrm{EF} = 100\,\mathrm{SV} / \mathrm{EDV},
        \quad m = 1.05\,\mathrm{g/ml} \cdot V_\mathrm{MYO,ED}

    A missing volume is NaN, as is an EF with an EDV of 0. A chamber or myocardium without any volume is left out.

    Args:
        volumes: millilitres by ``(structure, phase)``; structures LV, RV, MYO, phases ED, ES.

    Example:
        >>> indices = clinical_indices({("LV", "ED"): 150.0, ("LV", "ES"): 60.0, ("MYO", "ED"): 100.0})
        >>> indices["lv_ef_percent"], indices["lv_mass_g"]
        (60.0, 105.0)

    References:
        Schulz-Menger et al., *Standardized Image Interpretation and Post-Processing in Cardiovascular Magnetic
        Resonance: 2020 Update*, JCMR 22:19, 2020 (mass from end diastole, 1.05 g/ml).
        Differs from the paper: none.
    """
    structures = {structure for structure, _ in volumes}
    indices: dict[str, float] = {}
    for chamber in (name for name in CHAMBERS if name in structures):
        edv, esv = (volumes.get((chamber, phase), math.nan) for phase in ("ED", "ES"))
        ejected = edv - esv
        ef_percent = 100 * ejected / edv if edv else math.nan
        indices |= zip(_INDEX_NAMES[chamber], (edv, esv, ejected, ef_percent), strict=True)
    if MYOCARDIUM in structures:
        indices["lv_mass_g"] = MYOCARDIUM_G_PER_ML * volumes.get((MYOCARDIUM, "ED"), math.nan)
    return indices


def why_no_patient_table(rows: Sequence[ScoreRow]) -> str | None:
    """Return the reason for a missing clinical table, or None.

    The table needs phases ED or ES, a chamber LV or RV, and at most one case of each patient and phase.
    """
    if not {row.phase for row in rows} & {"ED", "ES"}:
        return (
            "The clinical table is left out because the phases (ED, ES) are unknown; "
            "give the labels as a manifest or as ACDC's own folder."
        )
    if not {row.structure for row in rows} & set(CHAMBERS):
        return "The clinical table is left out because no structure is called LV or RV."
    counts = Counter((row.patient_id, row.phase) for row in rows if row.structure == rows[0].structure)
    for (patient_id, phase), count in counts.items():
        if phase in ("ED", "ES") and count > 1:
            return f"The clinical table is left out because patient {patient_id} has {count} cases of phase {phase}."
    return None


def may_be_cardiac(rows: Sequence[ScoreRow]) -> bool:
    """Return whether scores may be of hearts.

    They may if a phase is known, a structure is LV or RV, or structures have no names but those of label values,
    ``label_1`` and so on. For other scores a clinical table is not missed.
    """
    structures = {row.structure for row in rows}
    has_names = not all(re.fullmatch(r"label_\d+", name) for name in structures)
    return not has_names or bool(structures & {*CHAMBERS} or {row.phase for row in rows} & {"ED", "ES"})


def patient_table(rows: Sequence[ScoreRow]) -> tuple[PatientIndices, ...]:
    """Compute the indices of every patient with a known phase.

    The result is sorted by patient, and empty if :func:`why_no_patient_table` returns a reason.
    """
    if why_no_patient_table(rows):
        return ()
    patients = {row.patient_id: row.group for row in rows if row.phase in ("ED", "ES")}
    phased = group_rows((row for row in rows if row.phase), "patient_id")
    unknown = {(row.structure, "ED"): math.nan for row in rows if row.phase}  # so that every patient has all indices
    table = []
    for patient_id, group in sorted(patients.items(), key=lambda item: item[0]):
        own = phased.pop(patient_id)
        predicted = unknown | {(row.structure, str(row.phase)): row.volume_ml for row in own}
        labelled = unknown | {(row.structure, str(row.phase)): row.label_volume_ml for row in own}
        table.append(PatientIndices(patient_id, group, clinical_indices(predicted), clinical_indices(labelled)))
    return tuple(table)


def write_patients(path: Path | str, patients: Sequence[PatientIndices]) -> None:
    """Write ``patients.csv``.

    Each index has three columns: prediction, label, and prediction minus label. The file is complete or absent.
    """
    indices = list_indices(patients)
    columns = [column for name in indices for column in (name, f"{name}_label", f"{name}_difference")]
    rows = []
    for patient in patients:
        numbers = ((patient.prediction[name], patient.label[name], patient.difference(name)) for name in indices)
        rows.append([patient.patient_id, patient.group or "", *chain.from_iterable(numbers)])
    write_csv(path, ["patient_id", "group", *columns], rows)


def list_indices(patients: Sequence[PatientIndices]) -> tuple[str, ...]:
    """Return the names of the indices, in the order of the table."""
    return tuple(patients[0].prediction) if patients else ()


def list_ejection_fractions(patients: Sequence[PatientIndices]) -> tuple[str, ...]:
    """Return the names of the ejection fractions."""
    return tuple(name for name in list_indices(patients) if name.endswith("_ef_percent"))


def agreement(patients: Sequence[PatientIndices]) -> dict[str, dict[str, Any]]:
    """Compute the Bland-Altman agreement of each index, prediction minus label.

    Bias, standard deviation, 95 % limits of agreement and mean absolute difference, over patients with a finite
    difference.

    References:
        Bland & Altman, *Statistical Methods for Assessing Agreement Between Two Methods of Clinical Measurement*,
        Lancet 327, 1986.
        Differs from the paper: none.
    """
    return {
        name: _compute_agreement([patient.difference(name) for patient in patients]) for name in list_indices(patients)
    }


def group_means(patients: Sequence[PatientIndices]) -> dict[str, dict[str, Any]]:
    """Compute the mean ejection fractions of each diagnosis.

    The result is empty if no group is known.
    """
    by_group = group_rows((patient for patient in patients if patient.group is not None), "group")
    table: dict[str, dict[str, Any]] = {}
    for group, members in sorted(by_group.items()):
        means = {
            name: {
                "prediction": moments(patient.prediction[name] for patient in members).mean,
                "label": moments(patient.label[name] for patient in members).mean,
            }
            for name in list_ejection_fractions(patients)
        }
        table[group] = {"n_patients": len(members), **means}
    return table


def _compute_agreement(differences: Sequence[float]) -> dict[str, Any]:
    found, absolute = moments(differences), moments(map(abs, differences))
    limits = None
    if found.mean is not None and found.sd is not None:
        limits = [found.mean - 1.96 * found.sd, found.mean + 1.96 * found.sd]
    return {"n": found.n, "bias": found.mean, "sd": found.sd, "limits": limits, "mean_absolute": absolute.mean}
