"""Promises of all readers of public data sets."""

import os
from collections import Counter

import numpy as np
import pytest

from tests.data_prep.raw_layouts import AFFINE, SHAPE, Acdc, Aorta, CisUnet, ImageCas, Mnms, file_bytes
from uumamba.data.case import Manifest
from uumamba.data.scan import read_case
from uumamba.pipelines.datasets import read_dataset

PATIENTS = 5
MIRRORED = AFFINE @ np.diag([-1, 1, 1, 1])


LAYOUTS = (Acdc, Mnms, ImageCas, Aorta, CisUnet)


@pytest.fixture(params=LAYOUTS, ids=lambda kind: kind.__name__)
def layout(request):
    return request.param()


@pytest.fixture
def raw(layout, tmp_path):
    (tmp_path / "raw").mkdir()
    layout.write(tmp_path / "raw", PATIENTS)
    return tmp_path / "raw"


def test_a_reader_lists_each_case_once_with_folds_by_patient_licence_and_citation(layout, raw, tmp_path):
    manifest, errors = layout.read(raw, tmp_path)
    training, test = manifest.select(split="training"), manifest.select(split="test")
    cases_of_a_patient = len(training) // PATIENTS

    assert errors == []
    assert len({case.case_id for case in manifest.cases}) == len(manifest.cases)
    assert {case.patient_id for case in training} == {layout.patient_id(number) for number in range(1, PATIENTS + 1)}
    assert len({(case.patient_id, case.fold) for case in training}) == PATIENTS
    assert Counter(case.fold for case in training) == dict.fromkeys(range(5), cases_of_a_patient)
    assert {(case.patient_id, case.fold) for case in test} == {(layout.patient_id(layout.test_number), None)}
    assert manifest.structures == layout.structures
    assert all((manifest.name, manifest.modality, manifest.licence, manifest.reference))


def test_every_case_is_an_image_with_all_declared_structures_on_its_grid(layout, raw, tmp_path):
    manifest, _ = layout.read(raw, tmp_path)
    for case in manifest.cases:
        image, label = read_case(case, structures=manifest.structures)
        assert image.array.shape == SHAPE
        assert np.unique(label.array).tolist() == [0, *manifest.structures.values()]


def test_equal_data_give_equal_bytes_anywhere_and_raw_is_never_written_to(layout, raw, tmp_path):
    before, manifests = file_bytes(raw), []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        raw = raw.rename(tmp_path / place / "raw")
        manifest, _ = layout.read(raw, tmp_path / place)
        assert file_bytes(raw) == before
        manifest.write(tmp_path / place / "dataset.json")
        assert Manifest.read(tmp_path / place) == manifest
        manifests.append((tmp_path / place / "dataset.json").read_bytes())
    assert manifests[0] == manifests[1]


def lose(key):
    return lambda layout, raw: layout.files(raw, 3)[key][0].unlink()


def cut(key, length):
    return lambda layout, raw: os.truncate(layout.files(raw, 3)[key][0], length)


FAULTS = {
    "no image": lose("image"),
    "no label": lose("label"),
    "cut image": cut("image", 20),
    "empty image": cut("image", 0),
    "cut label": cut("label", 20),
    "noise": lambda layout, raw: layout.files(raw, 3)["image"][0].write_bytes(b"noise" * 200),
    "mirrored label": lambda layout, raw: layout.write_label(raw, 3, affine=MIRRORED),
    "shifted label": lambda layout, raw: layout.write_label(raw, 3, affine=AFFINE + 10 * np.eye(4, k=3)),
    "label of another shape": lambda layout, raw: layout.write_label(raw, 3, shape=(8, 7, 25)),
}


# ACDC's scans are first opened when they are prepared.
@pytest.mark.parametrize(
    ("layout", "fault"),
    [(kind, fault) for kind in LAYOUTS for fault in FAULTS if kind is not Acdc or fault.startswith("no ")],
    indirect=["layout"],
)
def test_a_faulty_case_is_named_and_the_others_keep_their_folds(layout, raw, tmp_path, fault):
    whole, _ = layout.read(raw, tmp_path)
    FAULTS[fault](layout, raw)

    manifest, errors = layout.read(raw, tmp_path)

    assert {error.case_id.partition("_")[0] for error in errors} == {layout.patient_id(3)}
    if fault.startswith("no "):
        assert [(error.key, error.got) for error in errors] == [(fault.removeprefix("no "), "no file")]
    lost = {case.case_id for case in whole.cases} - {case.case_id for case in manifest.cases}
    assert {case_id.partition("_")[0] for case_id in lost} == {layout.patient_id(3)}
    assert len(lost) == layout.cases_per_file
    assert [(case.case_id, case.fold) for case in manifest.cases] == [
        (case.case_id, case.fold) for case in whole.cases if case.case_id not in lost
    ]


def test_a_folder_without_the_layout_is_refused(layout, tmp_path, refused):
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        with refused("raw", got=folder):
            type(layout).read_raw(folder)


def test_a_configuration_names_the_reader(layout, raw, tmp_path):
    expected = layout.read(raw, tmp_path)
    assert read_dataset(layout.name, raw, frames=tmp_path / "0") == expected


def test_a_folder_that_is_no_data_set_is_refused_with_the_way_for_own_scans(layout, tmp_path, refused):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "patient.nii.gz").touch()
    with refused("raw", got=tmp_path / "scans") as error:
        layout.read(tmp_path / "scans", tmp_path)
    assert "folder_2d" in error.value.fix
