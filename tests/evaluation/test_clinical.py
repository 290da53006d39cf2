import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uumamba.evaluation import (
    EvaluationPair,
    PatientIndices,
    ScoreRow,
    evaluate,
    may_be_cardiac,
    patient_table,
    why_no_patient_table,
    write_patients,
)
from uumamba.evaluation.clinical import agreement, clinical_indices, group_means

MakePair = Callable[..., EvaluationPair]


def test_indices_follow_from_volumes_by_hand() -> None:
    volumes = {("LV", "ED"): 150.0, ("LV", "ES"): 60.0, ("RV", "ED"): 160.0, ("RV", "ES"): 80.0, ("MYO", "ED"): 100.0}
    assert clinical_indices(volumes) == {
        "lv_edv_ml": 150.0,
        "lv_esv_ml": 60.0,
        "lv_sv_ml": 90.0,
        "lv_ef_percent": 60.0,
        "rv_edv_ml": 160.0,
        "rv_esv_ml": 80.0,
        "rv_sv_ml": 80.0,
        "rv_ef_percent": 50.0,
        "lv_mass_g": 105.0,
    }


def test_indices_of_a_missing_phase_and_the_ejection_fraction_of_an_empty_ventricle_are_nan() -> None:
    indices = clinical_indices({("LV", "ED"): 150.0, ("MYO", "ES"): 90.0})
    assert indices["lv_edv_ml"] == 150.0
    assert all(math.isnan(indices[name]) for name in ("lv_esv_ml", "lv_sv_ml", "lv_ef_percent", "lv_mass_g"))
    assert math.isnan(clinical_indices({("LV", "ED"): 0.0, ("LV", "ES"): 0.0})["lv_ef_percent"])


def test_the_table_has_each_patient_of_known_phase_from_prediction_and_label(
    cohort: tuple[ScoreRow, ...], make_pair: MakePair, structures: dict[str, int]
) -> None:
    of_unknown_phase = evaluate([make_pair("z", {"LV": 1}, {"LV": 1})], structures=structures).rows
    patients = {patient.patient_id: patient for patient in patient_table(cohort + of_unknown_phase)}
    assert {name: patient.label["lv_ef_percent"] for name, patient in patients.items()} == {"a": 60, "b": 50, "c": 20}
    assert patients["a"].prediction["lv_ef_percent"] == 50.0
    assert patients["a"].difference("lv_ef_percent") == -10.0
    assert patients["b"].label["lv_mass_g"] == pytest.approx(1.05 * 70)
    assert patients["c"].group == "DCM"


@pytest.mark.parametrize(
    ("cases", "structure", "phase", "reason"),
    [
        (1, "LV", None, "phases (ED, ES) are unknown"),
        (1, "aorta", "ED", "LV or RV"),
        (2, "LV", "ED", "patient p has 2 cases of phase ED"),
    ],
)
def test_a_missing_table_has_a_reason(
    cases: int, structure: str, phase: str | None, reason: str, make_pair: MakePair
) -> None:
    pairs = [make_pair(f"p_{number}", {}, {}, patient_id="p", phase=phase) for number in range(cases)]
    rows = evaluate(pairs, structures={structure: 1}).rows
    assert reason in str(why_no_patient_table(rows))
    assert patient_table(rows) == ()


@pytest.mark.parametrize(
    ("structure", "phase", "expected"),
    [("LV", None, True), ("aorta", "ED", True), ("label_1", None, True), ("tumour", None, False)],
)
def test_scores_of_named_structures_that_are_no_chambers_are_not_cardiac(
    structure: str, phase: str | None, expected: bool, make_pair: MakePair
) -> None:
    rows = evaluate([make_pair("a", {}, {}, patient_id="p", phase=phase)], structures={structure: 1}).rows
    assert may_be_cardiac(rows) is expected


# Differences 1 and 3: mean 2, sample variance ((1 - 2)^2 + (3 - 2)^2) / 1 = 2.
LIMITS = pytest.approx([2 - 1.96 * math.sqrt(2), 2 + 1.96 * math.sqrt(2)])


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ((1.0, 3.0), {"n": 2, "bias": 2.0, "sd": pytest.approx(math.sqrt(2)), "limits": LIMITS, "mean_absolute": 2.0}),
        ((1.0, math.nan), {"n": 1, "bias": 1.0, "sd": None, "limits": None, "mean_absolute": 1.0}),
    ],
)
def test_agreement_is_over_patients_with_a_finite_difference(
    differences: tuple[float, ...], expected: dict[str, Any]
) -> None:
    patients = [PatientIndices(str(d), None, {"lv_ef_percent": 50.0 + d}, {"lv_ef_percent": 50.0}) for d in differences]
    assert agreement(patients)["lv_ef_percent"] == expected


def test_ejection_fractions_are_averaged_by_group(cohort: tuple[ScoreRow, ...]) -> None:
    groups = group_means(patient_table(cohort))
    assert list(groups) == ["DCM", "NOR"]
    assert groups["NOR"]["n_patients"] == 2
    assert groups["NOR"]["lv_ef_percent"] == {"prediction": 50.0, "label": 55.0}
    # Patient b's predicted RV has no end-diastolic volume, so its EF is undefined; a's is (90 - 40) / 90.
    assert groups["NOR"]["rv_ef_percent"]["prediction"] == pytest.approx(100 * 50 / 90)


def test_patients_csv_holds_prediction_label_and_difference(cohort: tuple[ScoreRow, ...], tmp_path: Path) -> None:
    write_patients(tmp_path / "patients.csv", patient_table(cohort))
    with (tmp_path / "patients.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0])[:5] == ["patient_id", "group", "lv_edv_ml", "lv_edv_ml_label", "lv_edv_ml_difference"]
    assert [row["patient_id"] for row in rows] == ["a", "b", "c"]
    for row in rows:
        for name in ("lv_esv_ml", "rv_sv_ml", "lv_mass_g"):
            expected = float(row[name]) - float(row[f"{name}_label"])
            assert float(row[f"{name}_difference"]) == pytest.approx(expected)


def test_a_patient_without_rows_of_a_chamber_has_undefined_indices(cohort: tuple[ScoreRow, ...]) -> None:
    rows = [row for row in cohort if (row.patient_id, row.structure) != ("c", "RV")]
    table = patient_table(rows)
    assert math.isnan(table[-1].prediction["rv_ef_percent"])
    assert agreement(table)["rv_ef_percent"]["n"] <= 2
