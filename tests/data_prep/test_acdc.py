from collections import Counter, defaultdict
from unittest.mock import ANY

import nibabel as nib
import numpy as np
import pytest

from data_prep import read_acdc
from tests.data_prep.raw_layouts import Acdc, read_all

INFO = "ED: 1\nES: 12\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"


ACDC = Acdc()


def test_a_patient_becomes_an_ed_and_an_es_case(tmp_path):
    ACDC.write_patient(tmp_path, 2)
    patient = tmp_path / "training" / "patient002"

    manifest = read_all(read_acdc, tmp_path)
    ed, es = manifest.cases

    assert (ed.case_id, ed.patient_id, ed.domain, ed.phase) == ("patient002_frame01", "patient002", "acdc", "ED")
    assert (ed.group, ed.split, es.case_id, es.phase) == ("DCM", "training", "patient002_frame12", "ES")
    assert (ed.image, ed.label) == tuple(patient / f"patient002_frame01{end}.nii.gz" for end in ("", "_gt"))
    assert "10.1109/TMI.2018.2837502" in manifest.reference
    assert "CC BY-NC-SA 4.0" in manifest.licence


@pytest.mark.parametrize("level", ["", "database"])
def test_testing_patients_are_test_cases_with_or_without_the_database_level(tmp_path, level):
    ACDC.write_patient(tmp_path / level, 1)
    ACDC.write_patient(tmp_path / level, ACDC.test_number, info="ED: 1\nES: 12\n")
    for path in ACDC.files(tmp_path / level, ACDC.test_number)["label"]:
        path.unlink()

    manifest = read_all(read_acdc, tmp_path)

    assert [case.split for case in manifest.cases] == ["training"] * 2 + ["test"] * 2
    assert {(case.fold, case.label, case.group) for case in manifest.select(split="test")} == {(None, None, None)}


@pytest.mark.parametrize(("name", "split"), [("training", "training"), ("mine", "training"), ("testing", "test")])
def test_a_folder_of_patients_is_training_unless_it_is_named_testing(tmp_path, name, split):
    ACDC.write_patient(tmp_path, 1)
    folder = (tmp_path / "training").rename(tmp_path / name)

    assert {case.split for case in read_acdc(folder)[0].cases} == {split}


@pytest.mark.parametrize(
    "info", [INFO.replace("\n", "\r\n"), INFO.rstrip(), "\ufeff" + INFO, "\n".join(INFO.split("\n")[::-1])]
)
def test_info_is_read_with_any_line_ends_and_order(tmp_path, info):
    ACDC.write_patient(tmp_path, 1, info=info)

    cases = read_all(read_acdc, tmp_path).cases
    assert [(case.phase, case.group) for case in cases] == [("ED", "DCM"), ("ES", "DCM")]


@pytest.mark.parametrize(
    ("info", "key", "got"),
    [
        ("ES: 12\nGroup: DCM\n", "ED", ""),
        ("ED: one\nES: 12\nGroup: DCM\n", "ED", "one"),
        ("ED: 1\nES: 12.5\nGroup: DCM\n", "ES", "12.5"),
        ("ED: 0\nES: 12\nGroup: DCM\n", "ED", "0"),
        ("ED: 1\nES: 01\nGroup: DCM\n", "ES", "01"),
        ("ED: 1\nES: 12\n", "Group", ""),
        (b"ED: 1\xff\xfe", "Info.cfg", ANY),
        (None, "Info.cfg", ANY),
    ],
)
def test_a_patient_with_a_faulty_info_is_reported_and_the_others_are_kept(tmp_path, info, key, got):
    ACDC.write_patient(tmp_path, 1)
    ACDC.write_patient(tmp_path, 2, info=info or INFO)
    if info is None:
        (tmp_path / "training" / "patient002" / "Info.cfg").unlink()

    manifest, (error,) = read_acdc(tmp_path)

    assert [case.case_id for case in manifest.cases] == ["patient001_frame01", "patient001_frame12"]
    assert (error.case_id, error.key, error.got) == ("patient002", key, got)


def test_real_acdc_has_200_cases_in_stratified_patient_folds(acdc_raw):
    manifest = read_all(read_acdc, acdc_raw)
    patients = {case.patient_id: (case.fold, case.group) for case in manifest.cases}

    assert (len(manifest.cases), len(patients)) == (200, 100)
    assert {(case.patient_id, case.fold, case.group) for case in manifest.cases} == {
        (patient_id, *rest) for patient_id, rest in patients.items()
    }
    expected = {(fold, group): 4 for fold in range(5) for group in ("DCM", "HCM", "MINF", "NOR", "RV")}
    assert Counter(patients.values()) == expected
    # End-diastole is not always the first frame.
    assert [manifest.by_id(f"patient090_frame{frame}").phase for frame in ("04", "11")] == ["ED", "ES"]


def test_real_ejection_fractions_are_those_of_the_diagnoses(acdc_raw):
    cases = read_acdc(acdc_raw)[0].cases
    voxels = {
        (case.patient_id, case.phase): np.count_nonzero(np.asarray(nib.load(case.label).dataobj) == 3) for case in cases
    }
    fractions = defaultdict(list)
    for case in cases:
        fractions[case.group].append(100 - 100 * voxels[case.patient_id, "ES"] / voxels[case.patient_id, "ED"])

    means = {group: np.mean(found) for group, found in fractions.items()}
    assert means == pytest.approx({"DCM": 20, "MINF": 31, "RV": 56, "NOR": 62, "HCM": 70}, abs=3)
