import os

import numpy as np
import pytest
import SimpleITK

from data_prep import read_aorta
from data_prep.aorta import MIRROR_PAIRS, SIDES, STRUCTURES
from uumamba.data.case import Manifest
from uumamba.data.scan import check_same_grid, read_image, read_label
from uumamba.pipelines.datasets import read_dataset
from uumamba.runtime.errors import UsageError

OFFICIAL = ("images/subject{:03d}_CTA.mha", "masks/subject{:03d}_label.mha")
CIS_UNET = ("{0:02d}/Volumes/Subject{0:03d}_CTA.nii.gz", "{0:02d}/Labels/Subject{0:03d}_Label.nii.gz")


def add_subject(raw, number, *, names=OFFICIAL, label=True, size=(6, 5, 24), label_size=None, label_origin=(0, 0, 0)):
    image, mask = (raw / name.format(number) for name in names)
    image.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(SimpleITK.Image(*size, SimpleITK.sitkInt16), image)
    if label:
        mask.parent.mkdir(parents=True, exist_ok=True)
        voxels = np.zeros((label_size or size)[::-1], np.uint8)
        voxels[:, 2, 2] = np.arange(len(voxels))  # 24 slices: every class once, and the background
        written = SimpleITK.GetImageFromArray(voxels)
        written.SetOrigin(label_origin)
        SimpleITK.WriteImage(written, mask)


def case_ids(manifest, **which):
    return [case.case_id for case in manifest.select(**which)]


@pytest.mark.parametrize("names", [OFFICIAL, CIS_UNET])
def test_both_namings_give_the_same_cases(tmp_path, names):
    for number in (1, 7, 39):
        add_subject(tmp_path, number, names=names)

    manifest, errors = read_aorta(tmp_path)
    case = manifest.by_id("subject007")

    assert errors == []
    assert case_ids(manifest) == ["subject001", "subject007", "subject039"]
    assert (case.patient_id, case.domain, case.split) == ("subject007", "aortaseg24", "training")
    assert (case.image, case.label) == tuple(tmp_path / name.format(7) for name in names)


@pytest.mark.parametrize("names", [OFFICIAL, CIS_UNET])
def test_the_files_listed_are_a_scan_and_its_23_classes(tmp_path, names):
    add_subject(tmp_path, 1, names=names)

    manifest, _ = read_aorta(tmp_path)
    (case,) = manifest.cases
    image, label = read_image(case.image), read_label(case.label, structures=manifest.structures)

    check_same_grid(image, label, case_id=case.case_id)
    assert np.unique(label.array).tolist() == [0, *manifest.structures.values()]


def test_ids_are_found_and_not_counted(tmp_path):
    numbers = (2, 3, 5, 8, 13, 21, 34, 53)
    for number in numbers:
        add_subject(tmp_path, number)

    assert case_ids(read_aorta(tmp_path)[0]) == [f"subject{number:03d}" for number in numbers]


def test_no_subject_is_trained_and_tested_on(tmp_path):
    for number in (*range(31, 41), *range(41, 54)):
        add_subject(tmp_path, number)

    manifest, _ = read_aorta(tmp_path)
    training, test = case_ids(manifest, split="training"), case_ids(manifest, split="test")

    assert set(training).isdisjoint(test)
    # The released code tests on 041 to 053, and trains on 041 to 043 as well.
    assert test == [f"subject{number:03d}" for number in range(41, 54)]
    assert sorted(case.fold for case in manifest.select(split="training")) == sorted([0, 1, 2, 3, 4] * 2)
    assert {case.fold for case in manifest.select(split="test")} == {None}


def test_the_classes_are_numbered_as_in_the_challenge():
    assert sorted(STRUCTURES.values()) == list(range(1, 24))
    branches = {"Innominate": 2, "LCC": 4, "LSA": 6, "Celiac": 11, "SMA": 13, "RenalR": 15, "RenalL": 16}
    iliacs = {"Zone10R": 18, "Zone10L": 19, "InternalIliacR": 20, "InternalIliacL": 21, "Zone11R": 22, "Zone11L": 23}
    zones = {f"Zone{n}": v for n, v in enumerate((1, 3, 5, 7, 8, 9, 10, 12, 14, 17))}
    assert branches | iliacs | zones == STRUCTURES


def test_every_class_with_a_side_is_marked_and_its_partner_named():
    lateral = {name for name in STRUCTURES if name.endswith(("R", "L"))}

    assert {name for pair in MIRROR_PAIRS for name in pair} == lateral
    assert all((right[-1], left[-1], right[:-1]) == ("R", "L", left[:-1]) for right, left in MIRROR_PAIRS)
    assert set(SIDES) == lateral | {"LCC", "LSA"}
    assert {name: SIDES[name] for name in ("RenalR", "RenalL", "LSA")} == {
        "RenalR": "right",
        "RenalL": "left",
        "LSA": "left",
    }


def test_the_manifest_keeps_sides_licence_and_citation_on_disk(tmp_path):
    add_subject(tmp_path, 1)
    manifest, _ = read_aorta(tmp_path)
    manifest.write(tmp_path / "dataset.json")

    read = Manifest.read(tmp_path)

    assert read == manifest
    assert read.extra["mirror_pairs"] == [list(pair) for pair in MIRROR_PAIRS]
    assert read.extra["sides"] == SIDES
    assert "arXiv:2502.05330" in read.reference
    assert "arXiv:2401.13049" in read.reference
    assert "signed data agreement" in read.licence


def cut(raw):
    path = raw / "images" / "subject002_CTA.mha"
    os.truncate(path, 20)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (cut, "subject002: the header of subject002_CTA.mha (20 bytes) cannot be read; restore the file"),
        (
            lambda raw: add_subject(raw, 2, label_size=(6, 5, 23)),
            "subject002: the image has the shape (6, 5, 24), its label (6, 5, 23); give the label of this image.",
        ),
        (
            lambda raw: add_subject(raw, 2, label_origin=(0, 0, 50)),
            "subject002: image and label lie up to 50.0 voxels apart by their affines; resample",
        ),
        (
            lambda raw: (raw / "masks" / "subject002_label.mha").unlink(),
            "subject002: its label subject002_label.mha is missing; restore it from the challenge's download.",
        ),
        (
            lambda raw: (raw / "images" / "subject002_CTA.mha").unlink(),
            "subject002: its image subject002_CTA.mha is missing; restore it from the challenge's download.",
        ),
        (lambda raw: add_subject(raw, 2, names=CIS_UNET), "subject002: its image is found twice, as "),
    ],
)
def test_a_bad_subject_is_reported_by_name_and_the_others_stay(tmp_path, spoil, problem):
    for number in (1, 2, 3):
        add_subject(tmp_path, number)
    spoil(tmp_path)

    manifest, errors = read_aorta(tmp_path)

    assert case_ids(manifest) == ["subject001", "subject003"]
    assert len(errors) == 1
    assert str(errors[0]).startswith(problem)


def test_a_test_subject_needs_no_label(tmp_path):
    add_subject(tmp_path, 44, label=False)

    manifest, errors = read_aorta(tmp_path)

    assert errors == []
    assert [(case.split, case.label) for case in manifest.cases] == [("test", None)]


def test_a_config_names_the_data_set(tmp_path):
    add_subject(tmp_path, 1)

    assert read_dataset("aorta", tmp_path) == read_aorta(tmp_path)


def test_a_missing_or_empty_folder_is_refused(tmp_path):
    with pytest.raises(
        UsageError, match=r"raw AortaSeg24 folder .*absent does not exist; expected images/subject001_CTA"
    ):
        read_aorta(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"No subject was found in .*; expected images/subject001_CTA\.mha"):
        read_aorta(tmp_path)
