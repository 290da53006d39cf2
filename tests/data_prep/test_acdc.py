import json
import shutil
from collections import Counter

import nibabel as nib
import numpy as np
import pytest

from data_prep import read_acdc
from uumamba.data.case import Manifest
from uumamba.runtime.errors import UsageError

INFO = "ED: 1\nES: 12\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"


def add_patient(folder, number, *, info=INFO, frames=(1, 12), labels=True):
    patient = folder / f"patient{number:03d}"
    patient.mkdir(parents=True)
    if info is not None:
        (patient / "Info.cfg").write_bytes(info.encode())
    for frame in frames:
        (patient / f"{patient.name}_frame{frame:02d}.nii.gz").touch()
        if labels:
            (patient / f"{patient.name}_frame{frame:02d}_gt.nii.gz").touch()
    (patient / f"{patient.name}_4d.nii.gz").touch()
    return patient


def case_ids(manifest):
    return [case.case_id for case in manifest.cases]


def test_a_patient_becomes_an_ed_and_an_es_case(tmp_path):
    patient = add_patient(tmp_path / "training", 1)

    manifest, errors = read_acdc(tmp_path)
    ed, es = manifest.cases

    assert errors == []
    assert (ed.case_id, ed.patient_id, ed.domain, ed.phase) == ("patient001_frame01", "patient001", "acdc", "ED")
    assert (ed.group, ed.split, es.case_id, es.phase) == ("DCM", "training", "patient001_frame12", "ES")
    assert ed.image == patient / "patient001_frame01.nii.gz"
    assert ed.label == patient / "patient001_frame01_gt.nii.gz"
    assert manifest.structures == {"RV": 1, "MYO": 2, "LV": 3}
    assert "10.1109/TMI.2018.2837502" in manifest.reference
    assert "CC BY-NC-SA 4.0" in manifest.licence


@pytest.mark.parametrize("level", ["", "database"])
def test_testing_patients_are_test_cases_with_or_without_the_database_level(tmp_path, level):
    add_patient(tmp_path / level / "training", 1)
    add_patient(tmp_path / level / "testing", 101, info="ED: 1\nES: 12\n", labels=False)

    manifest, errors = read_acdc(tmp_path)

    assert errors == []
    assert [case.split for case in manifest.cases] == ["training"] * 2 + ["test"] * 2
    for case in manifest.select(split="test"):
        assert (case.fold, case.label, case.group) == (None, None, None)


def test_a_folder_of_patients_itself_is_training_and_one_named_testing_is_not(tmp_path):
    add_patient(tmp_path / "training", 1)
    add_patient(tmp_path / "testing", 101)

    assert {case.split for case in read_acdc(tmp_path / "training")[0].cases} == {"training"}
    assert {case.split for case in read_acdc(tmp_path / "testing")[0].cases} == {"test"}


@pytest.mark.parametrize(
    "info", [INFO.replace("\n", "\r\n"), INFO.rstrip(), "\ufeff" + INFO, "\n".join(INFO.split("\n")[::-1])]
)
def test_info_is_read_with_any_line_ends_and_order(tmp_path, info):
    add_patient(tmp_path / "training", 1, info=info)

    manifest, errors = read_acdc(tmp_path)

    assert errors == []
    assert [(case.phase, case.group) for case in manifest.cases] == [("ED", "DCM"), ("ES", "DCM")]


@pytest.mark.parametrize(
    ("info", "problem"),
    [
        (None, "patient002: its Info.cfg is missing; restore the patient's folder from the ACDC download."),
        (
            "ES: 12\nGroup: DCM\n",
            "patient002: its Info.cfg has no ED; write the frame number of ED, such as 'ED: 1', into",
        ),
        (
            "ED: one\nES: 12\nGroup: DCM\n",
            "patient002: its Info.cfg gives ED as 'one', not a whole number from 1 on; write",
        ),
        ("ED: 1\nES: 12.5\nGroup: DCM\n", "patient002: its Info.cfg gives ES as '12.5', not a whole number"),
        ("ED: 0\nES: 12\nGroup: DCM\n", "patient002: its Info.cfg gives ED as '0', not a whole number"),
        (
            "ED: 1\nES: 1\nGroup: DCM\n",
            "patient002: Info.cfg gives frame 1 as both ED and ES; correct the frame numbers",
        ),
        ("ED: 1\nES: 12\n", "patient002: its Info.cfg has no Group; add its diagnosis as a line such as 'Group: NOR'."),
    ],
)
def test_a_patient_with_a_wrong_info_is_reported_and_the_others_stay(tmp_path, info, problem):
    add_patient(tmp_path / "training", 1)
    add_patient(tmp_path / "training", 2, info=info)

    manifest, errors = read_acdc(tmp_path)

    assert case_ids(manifest) == ["patient001_frame01", "patient001_frame12"]
    assert len(errors) == 1
    assert str(errors[0]).startswith(problem)


def test_info_that_is_no_text_is_reported(tmp_path):
    patient = add_patient(tmp_path / "training", 1)
    (patient / "Info.cfg").write_bytes(b"ED: 1\xff\xfe")

    _, errors = read_acdc(tmp_path)

    assert "patient001: its Info.cfg cannot be read ('utf-8' codec" in str(errors[0])


@pytest.mark.parametrize(
    ("lost", "problem"),
    [
        (
            "patient002_frame12.nii.gz",
            "patient002_frame12: its image patient002_frame12.nii.gz (ES in Info.cfg) is missing; ",
        ),
        (
            "patient002_frame12_gt.nii.gz",
            "patient002_frame12: its label patient002_frame12_gt.nii.gz is missing; restore",
        ),
    ],
)
def test_a_case_without_its_file_is_reported_and_no_fold_moves(tmp_path, lost, problem):
    for number in range(1, 11):
        add_patient(tmp_path / "training", number)
    whole, _ = read_acdc(tmp_path)
    (tmp_path / "training" / "patient002" / lost).unlink()

    manifest, errors = read_acdc(tmp_path)

    assert [str(error).startswith(problem) for error in errors] == [True]
    assert manifest.cases == tuple(case for case in whole.cases if case.case_id != "patient002_frame12")


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(
        UsageError, match=r"raw ACDC folder .*absent does not exist; expected training/patient001/Info.cfg"
    ):
        read_acdc(tmp_path / "absent")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "ACDC.zip").touch()

    with pytest.raises(UsageError, match=r"ACDC.zip is a file; expected training/patient001"):
        read_acdc(tmp_path / "ACDC.zip")


def test_a_folder_without_patients_is_refused(tmp_path):
    (tmp_path / "training" / "subject1").mkdir(parents=True)

    with pytest.raises(UsageError, match=r"No patient folder was found in .*; expected training/patient001/Info.cfg"):
        read_acdc(tmp_path)


def test_the_manifest_has_equal_bytes_wherever_the_data_lie(tmp_path):
    for place in ("here", "there"):
        for number in range(1, 4):
            add_patient(tmp_path / place / "training", number)
        read_acdc(tmp_path / place)[0].write(tmp_path / place / "dataset.json")

    here, there = (tmp_path / place / "dataset.json" for place in ("here", "there"))

    assert here.read_bytes() == there.read_bytes()
    assert Manifest.read(here).cases == read_acdc(tmp_path / "here")[0].cases
    assert json.loads(here.read_text(encoding="utf-8"))["labels"] == {
        "0": "background",
        "1": "RV",
        "2": "MYO",
        "3": "LV",
    }


def test_real_acdc_has_200_cases_in_stratified_patient_folds(real_acdc):
    manifest, errors = read_acdc(real_acdc)
    patients = {case.patient_id: (case.fold, case.group) for case in manifest.cases}

    assert errors == []
    assert (len(manifest.cases), len(patients)) == (200, 100)
    assert {(case.patient_id, case.fold, case.group) for case in manifest.cases} == {
        (p, *rest) for p, rest in patients.items()
    }
    expected = {(fold, group): 4 for fold in range(5) for group in ("DCM", "HCM", "MINF", "NOR", "RV")}
    assert Counter(patients.values()) == expected


def test_real_patient_090_has_its_end_diastole_in_frame_4(real_acdc):
    manifest, _ = read_acdc(real_acdc)

    assert manifest.by_id("patient090_frame04").phase == "ED"
    assert manifest.by_id("patient090_frame11").phase == "ES"


def test_one_lost_label_of_the_real_acdc_loses_one_case(real_acdc, tmp_path):
    for number in (1, 21, 41):
        name = f"patient{number:03d}"
        shutil.copytree(real_acdc / "training" / name, tmp_path / "training" / name)
    (tmp_path / "training" / "patient021" / "patient021_frame01_gt.nii.gz").unlink()

    manifest, errors = read_acdc(tmp_path)

    assert [error.case_id for error in errors] == ["patient021_frame01"]
    assert len(manifest.cases) == 5


def lv_volume_ml(path):
    label = nib.load(path)
    return np.count_nonzero(np.asarray(label.dataobj) == 3) * float(np.prod(label.header.get_zooms())) / 1000


def group_mean_ejection_fractions(manifest):
    volumes = {(case.patient_id, case.phase): lv_volume_ml(case.label) for case in manifest.cases}
    groups = {case.patient_id: case.group for case in manifest.cases}
    fractions = {p: 100 * (1 - volumes[p, "ES"] / volumes[p, "ED"]) for p in groups}
    return {g: np.mean([fractions[p] for p in groups if groups[p] == g]) for g in set(groups.values())}


def test_real_ejection_fractions_are_those_of_the_diagnoses(real_acdc):
    means = group_mean_ejection_fractions(read_acdc(real_acdc)[0])

    assert means == pytest.approx({"DCM": 20, "MINF": 31, "RV": 56, "NOR": 62, "HCM": 70}, abs=3)
