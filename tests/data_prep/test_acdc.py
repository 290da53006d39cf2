from collections import Counter

import nibabel as nib
import numpy as np
import pytest

from data_prep import read_acdc
from tests.data_prep.raw_layouts import Acdc

INFO = "ED: 1\nES: 12\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"


@pytest.fixture
def acdc():
    return Acdc()


def test_a_patient_becomes_an_ed_and_an_es_case(tmp_path, acdc):
    acdc.write_patient(tmp_path, 2)
    patient = tmp_path / "training" / "patient002"

    manifest, errors = read_acdc(tmp_path)
    ed, es = manifest.cases

    assert errors == []
    assert (ed.case_id, ed.patient_id, ed.domain, ed.phase) == ("patient002_frame01", "patient002", "acdc", "ED")
    assert (ed.group, ed.split, es.case_id, es.phase) == ("DCM", "training", "patient002_frame12", "ES")
    assert (ed.image, ed.label) == tuple(patient / f"patient002_frame01{end}.nii.gz" for end in ("", "_gt"))
    assert "10.1109/TMI.2018.2837502" in manifest.reference
    assert "CC BY-NC-SA 4.0" in manifest.licence


@pytest.mark.parametrize("level", ["", "database"])
def test_testing_patients_are_test_cases_with_or_without_the_database_level(tmp_path, acdc, level):
    acdc.write_patient(tmp_path / level, 1)
    acdc.write_patient(tmp_path / level, acdc.test_number, info="ED: 1\nES: 12\n")
    for path in acdc.files(tmp_path / level, acdc.test_number)["label"]:
        path.unlink()

    manifest, errors = read_acdc(tmp_path)

    assert errors == []
    assert [case.split for case in manifest.cases] == ["training"] * 2 + ["test"] * 2
    assert {(case.fold, case.label, case.group) for case in manifest.select(split="test")} == {(None, None, None)}


@pytest.mark.parametrize(("name", "split"), [("training", "training"), ("mine", "training"), ("testing", "test")])
def test_a_folder_of_patients_itself_is_training_and_one_named_testing_is_not(tmp_path, acdc, name, split):
    acdc.write_patient(tmp_path, 1)
    folder = (tmp_path / "training").rename(tmp_path / name)

    assert {case.split for case in read_acdc(folder)[0].cases} == {split}


@pytest.mark.parametrize(
    "info", [INFO.replace("\n", "\r\n"), INFO.rstrip(), "\ufeff" + INFO, "\n".join(INFO.split("\n")[::-1])]
)
def test_info_is_read_with_any_line_ends_and_order(tmp_path, acdc, info):
    acdc.write_patient(tmp_path, 1, info=info)

    manifest, errors = read_acdc(tmp_path)

    assert errors == []
    assert [(case.phase, case.group) for case in manifest.cases] == [("ED", "DCM"), ("ES", "DCM")]


@pytest.mark.parametrize(
    ("info", "key", "got"),
    [
        ("ES: 12\nGroup: DCM\n", "ED", ""),
        ("ED: one\nES: 12\nGroup: DCM\n", "ED", "one"),
        ("ED: 1\nES: 12.5\nGroup: DCM\n", "ES", "12.5"),
        ("ED: 0\nES: 12\nGroup: DCM\n", "ED", "0"),
        ("ED: 1\nES: 01\nGroup: DCM\n", "ES", "01"),
        ("ED: 1\nES: 12\n", "Group", ""),
    ],
)
def test_a_patient_with_a_wrong_info_is_reported_and_the_others_stay(tmp_path, acdc, info, key, got):
    acdc.write_patient(tmp_path, 1)
    acdc.write_patient(tmp_path, 2, info=info)

    manifest, errors = read_acdc(tmp_path)

    assert [case.case_id for case in manifest.cases] == ["patient001_frame01", "patient001_frame12"]
    assert [(error.case_id, error.key, error.got) for error in errors] == [("patient002", key, got)]


def test_an_info_that_is_missing_or_no_text_is_reported(tmp_path, acdc):
    for number in (1, 2, 3):
        acdc.write_patient(tmp_path, number)
    (tmp_path / "training" / "patient001" / "Info.cfg").unlink()
    (tmp_path / "training" / "patient002" / "Info.cfg").write_bytes(b"ED: 1\xff\xfe")

    manifest, errors = read_acdc(tmp_path)

    assert [(error.case_id, error.key) for error in errors] == [("patient001", "Info.cfg"), ("patient002", "Info.cfg")]
    assert {case.patient_id for case in manifest.cases} == {"patient003"}


def test_a_case_without_its_file_keeps_the_other_phase(tmp_path, acdc):
    acdc.write(tmp_path, 2)
    acdc.files(tmp_path, 1)["label"][1].unlink()

    manifest, errors = read_acdc(tmp_path)

    assert [error.case_id for error in errors] == ["patient001_frame12"]
    assert len(manifest.select(split="training")) == 3


def test_real_acdc_has_200_cases_in_stratified_patient_folds(acdc_raw):
    manifest, errors = read_acdc(acdc_raw)
    patients = {case.patient_id: (case.fold, case.group) for case in manifest.cases}

    assert errors == []
    assert (len(manifest.cases), len(patients)) == (200, 100)
    assert {(case.patient_id, case.fold, case.group) for case in manifest.cases} == {
        (patient_id, *rest) for patient_id, rest in patients.items()
    }
    expected = {(fold, group): 4 for fold in range(5) for group in ("DCM", "HCM", "MINF", "NOR", "RV")}
    assert Counter(patients.values()) == expected
    # Not every patient's end diastole is the first frame.
    assert [manifest.by_id(f"patient090_frame{frame}").phase for frame in ("04", "11")] == ["ED", "ES"]


def test_real_ejection_fractions_are_those_of_the_diagnoses(acdc_raw):
    manifest, _ = read_acdc(acdc_raw)
    volumes = {}
    for case in manifest.cases:
        label = nib.load(case.label)
        voxels = np.count_nonzero(np.asarray(label.dataobj) == manifest.structures["LV"])
        volumes[case.patient_id, case.phase] = voxels * np.prod(label.header.get_zooms())
    fractions = {
        group: np.mean(
            [
                100 * (1 - volumes[case.patient_id, "ES"] / volumes[case.patient_id, "ED"])
                for case in manifest.cases
                if case.group == group
            ]
        )
        for group in {case.group for case in manifest.cases}
    }

    assert fractions == pytest.approx({"DCM": 20, "MINF": 31, "RV": 56, "NOR": 62, "HCM": 70}, abs=3)
