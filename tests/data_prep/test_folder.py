"""Any folder of scans: each common layout, its options, and each layout with one fault."""

import json
import re
from dataclasses import fields

import nibabel as nib
import numpy as np
import pytest

from data_prep.folder.folder_options import FolderOptions
from data_prep.folder.folder_reader import LAYOUTS as NAMES
from data_prep.folder.folder_reader import read_folder
from tests.data_prep.folder_layouts import (
    LAYOUTS,
    STRUCTURES,
    Csv,
    Datalist,
    Decathlon,
    NnUnet,
    NnUnetV1,
    OwnManifest,
    Pairs,
    touch_sources,
    write_csv,
    write_json,
)
from tests.data_prep.raw_layouts import file_bytes
from uumamba.config.data import DatasetConfig
from uumamba.data.case import Manifest
from uumamba.data.warn import ScanWarning

IDS = tuple(f"p{number}_v{visit}" for number in range(1, 7) for visit in "ab")
PATIENT = r"(p\d+)_v."
each_layout = pytest.mark.parametrize("kind", LAYOUTS, ids=lambda kind: kind.__name__)


@pytest.fixture
def write(tmp_path):
    """``write(Csv, channels=("T1", "T2"), case_ids=IDS)`` returns the layout and its folder."""

    def make(kind, *, channels=("MRI",), case_ids=IDS, structures=STRUCTURES):
        layout, raw = kind(channels, structures), tmp_path / "raw"
        layout.write(raw, touch_sources(tmp_path / "sources", case_ids, len(channels)))
        return layout, raw

    return make


def change_json(raw, name="dataset.json", **changed):
    content = json.loads((raw / name).read_text()) | changed
    write_json(raw, {key: value for key, value in content.items() if value is not None}, name=name)


def failed(errors):
    return {error.case_id for error in errors}


def test_every_layout_has_a_writer_here_and_every_option_is_a_key_of_a_configuration():
    assert {kind.name for kind in LAYOUTS} == NAMES.keys()
    options = {field.name: (field.default, field.type) for field in fields(FolderOptions)}
    keys = DatasetConfig.model_fields
    assert options.keys() == keys.keys() - {"name", "domains", "exclude_patients"}
    assert {key: default for key, (default, _) in options.items()} == {key: keys[key].default for key in options}


@each_layout
@pytest.mark.parametrize("channels", [("MRI",), ("T1", "T2")], ids=["one", "two"])
def test_a_layout_is_recognised_and_lists_each_case_with_channels_and_folds_by_patient(write, kind, channels):
    layout, raw = write(kind, channels=channels)
    before = file_bytes(raw)
    manifest, errors = layout.read(raw, patient=PATIENT)
    assert errors == []
    assert [case.case_id for case in manifest.cases] == [*IDS]
    assert manifest.structures == STRUCTURES
    assert {(case.case_id, *map(str, case.files)) for case in manifest.cases} == {
        (each, *map(str, [*layout.images_of(raw, each), layout.label(raw, each)])) for each in IDS
    }
    if kind not in (Datalist, Pairs) and channels == ("T1", "T2"):
        assert manifest.channels == channels
    assert {case.patient_id for case in manifest.cases} == {f"p{number}" for number in range(1, 7)}
    assert len({(case.patient_id, case.fold) for case in manifest.cases}) == 6
    assert {case.fold for case in manifest.cases} == {*range(5)}
    assert file_bytes(raw) == before
    assert layout.read(raw, patient=PATIENT, layout=kind.name) == (manifest, [])


@each_layout
@pytest.mark.parametrize(("count", "folds"), [(1, {0}), (2, {0, 1}), (4, {0, 1, 2, 3}), (7, {0, 1, 2, 3, 4})])
def test_there_are_as_many_folds_as_patients_and_at_most_five(write, kind, count, folds):
    layout, raw = write(kind, case_ids=[f"c{number}" for number in range(count)])
    manifest, errors = layout.read(raw)
    assert errors == []
    assert {case.fold for case in manifest.cases} == folds


@each_layout
@pytest.mark.parametrize(
    "structures",
    [{"a": 3, "b": 700}, {f"s{value}": value for value in range(1, 201)}],
    ids=["not consecutive", "200 classes"],
)
def test_label_values_may_have_gaps_and_be_many(write, kind, structures):
    layout, raw = write(kind, case_ids=["c1", "c2"], structures=structures)
    assert layout.read(raw)[0].structures == structures


@pytest.mark.parametrize("kind", [kind for kind in LAYOUTS if kind is not OwnManifest], ids=lambda kind: kind.__name__)
def test_more_than_254_structures_are_refused(write, kind, refused):
    layout, raw = write(kind, case_ids=["c1", "c2"], structures={f"s{value}": value for value in range(1, 256)})
    name = "Heart" if kind is Decathlon else "raw"
    with refused(f"{name}: labels"):
        layout.read(raw)


def lose_channel(layout, raw, case_id):
    layout.images_of(raw, case_id)[-1].unlink()
    return {f"image {layout.channels[-1]}", "T2", "image", "image channel_1"}


def lose_label(layout, raw, case_id):
    layout.label(raw, case_id).unlink()
    return {"label"}


def lose_images(layout, raw, case_id):
    for path in layout.images_of(raw, case_id):
        path.unlink()
    return {"image", f"image {layout.channels[0]}", layout.channels[0], "image channel_0"}


FAULTS = {"missing channel": lose_channel, "image without label": lose_label, "label without image": lose_images}


@each_layout
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_case_is_named_and_the_others_keep_their_folds(write, kind, fault):
    layout, raw = write(kind, channels=("T1", "T2"))
    whole, _ = layout.read(raw, patient=PATIENT)
    keys = FAULTS[fault](layout, raw, "p3_vb")

    manifest, [error] = layout.read(raw, patient=PATIENT)

    assert error.case_id == "p3_vb"
    assert error.key in keys
    assert error.got == "no file"
    assert manifest.cases == tuple(case for case in whole.cases if case.case_id != "p3_vb")


def repeat_entry(layout, raw):
    name = "dataset.json" if (raw / "dataset.json").exists() else "folds.json"
    content = json.loads((raw / name).read_text())
    content["training"].append(content["training"][0])
    write_json(raw, content, name=name)


def repeat_row(layout, raw):
    write_csv(raw, layout.rows(raw, [*IDS, IDS[0]]))


@pytest.mark.parametrize(("kind", "repeat"), [(Decathlon, repeat_entry), (Datalist, repeat_entry), (Csv, repeat_row)])
def test_a_case_listed_twice_is_named_and_left_out(write, kind, repeat):
    layout, raw = write(kind)
    repeat(layout, raw)
    manifest, [error] = layout.read(raw)
    assert (error.case_id, error.key) == (IDS[0], "case_id")
    assert [case.case_id for case in manifest.cases] == [*IDS[1:]]


def test_two_files_of_one_case_by_globs_are_named(tmp_path):
    for name in ("a/b/ct", "a_b/ct", "a_b/gt", "c/d/ct", "c/d/gt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.nii.gz").touch()
    manifest, [error] = read_folder(tmp_path, images="**/ct.nii.gz", labels="**/gt.nii.gz", structures={"a": 1})
    assert (error.case_id, error.key) == ("a_b", "image")
    assert [case.case_id for case in manifest.cases] == ["c_d"]


def test_a_manifest_with_a_case_twice_is_refused(write, refused):
    layout, raw = write(OwnManifest)
    repeat_entry(layout, raw)
    with refused("own: case_id", got=IDS[0]):
        layout.read(raw)


def test_regions_and_the_ignored_value_of_nnunet_are_read(write):
    layout, raw = write(NnUnet)
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    change_json(raw, labels=labels, regions_class_order=[1, 2, 3])
    manifest, _ = layout.read(raw)
    assert manifest.structures == {"label_1": 1, "label_2": 2, "label_3": 3}
    assert manifest.regions == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert manifest.regions_class_order == (1, 2, 3)
    assert manifest.ignore_value == 4
    assert [*manifest.targets] == ["whole", "core", "enhancing"]


def test_options_give_labels_that_no_file_gives(write):
    layout, raw = write(Pairs)
    given = {
        "structures": {"a": 1, "b": 2},
        "ignore_value": 9,
        "regions": {"all": (1, 2), "b": (2,)},
        "regions_class_order": (1, 2),
        "colours": {"all": "#ff7f0e"},
    }
    manifest, _ = layout.read(raw, **given)
    assert {key: getattr(manifest, key) for key in given} == given


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"channel_names": {"0": "T1", "2": "T2"}}, "channel_names"),
        ({"channel_names": {"0": ""}}, "channel_names.0"),
        ({"channel_names": {}}, "channel_names"),
        ({"labels": {"background": 0, "a": "one"}}, "labels.a"),
        ({"labels": {"0": "background", "1": "a", "2": "a"}}, "labels.2"),
        ({"labels": [1, 2]}, "labels"),
        ({"labels": {"background": 0, "all": [1, 2]}}, "regions_class_order"),
        ({"labels": {"background": 0, "all": [1, 2], "ignore": [3, 4]}, "regions_class_order": [1]}, "labels.ignore"),
        ({"file_ending": ".tiff"}, "file_ending"),
    ],
)
def test_a_wrong_key_of_nnunet_is_refused_by_its_name(write, refused, changed, key):
    layout, raw = write(NnUnet)
    change_json(raw, **changed)
    with refused(f"{raw / 'dataset.json'}: {key}"):
        layout.read(raw)


def test_test_cases_of_nnunet_need_no_label(write):
    layout, raw = write(NnUnet, case_ids=["c1", "c2"])
    for folder, name in (("imagesTs", "t1_0000"), ("imagesTs", "t2_0000"), ("labelsTs", "t2"), ("labelsTs", "t3")):
        (raw / folder).mkdir(exist_ok=True)
        (raw / folder / f"{name}.nii.gz").touch()
    manifest, [error] = layout.read(raw)
    assert (error.case_id, error.key) == ("t3", "image")
    assert {(case.case_id, case.label is None, case.fold) for case in manifest.select(split="test")} == {
        ("t1", True, None),
        ("t2", False, None),
    }


@pytest.mark.parametrize("name", ["c1.nii.gz", "c1_0002.nii.gz", "c1_0000.mha", "c1_0000.NII.GZ"])
def test_a_misnamed_image_of_nnunet_is_named(write, name):
    layout, raw = write(NnUnet, channels=("T1", "T2"), case_ids=["c1", "c2"])
    (raw / "imagesTr" / name).touch()
    manifest, [error] = layout.read(raw)
    assert (error.case_id, error.key, error.got) == ("c1", "image", name)
    assert [case.case_id for case in manifest.cases] == ["c2"]


def test_an_image_of_nnunet_may_hold_all_channels_in_one_file(write):
    layout, raw = write(NnUnet, channels=("R", "G", "B"), case_ids=["c1", "c2"])
    for path in [*raw.glob("imagesTr/*_0001*"), *raw.glob("imagesTr/*_0002*")]:
        path.unlink()
    manifest, errors = layout.read(raw)
    assert errors == []
    assert manifest.channels == ("R", "G", "B")
    assert [case.image.name for case in manifest.cases] == ["c1_0000.nii.gz", "c2_0000.nii.gz"]


def test_cases_that_nnunet_lists_by_path_are_read(write):
    layout, raw = write(NnUnet, channels=("T1", "T2"), case_ids=["c1", "c2"])
    entry = {"images": [f"imagesTr/c1_000{channel}.nii.gz" for channel in "01"], "label": "labelsTr/c1.nii.gz"}
    change_json(raw, dataset={"c1": entry, "c2": entry | {"label": "labelsTr/c3.nii.gz"}})
    manifest, [error] = layout.read(raw)
    assert (error.case_id, error.key) == ("c2", "label")
    assert [case.files for case in manifest.cases] == [(*layout.images_of(raw, "c1"), layout.label(raw, "c1"))]


def split(*val):
    known = {each for part in val for each in part}
    return [{"train": sorted(known - {*part}), "val": [*part]} for part in val]


def test_folds_are_those_of_splits_final(write):
    layout, raw = write(NnUnet, case_ids=["c1", "c2", "c3"])
    write_json(raw, json.dumps(split(["c2"], ["c1", "c3"])), name="splits_final.json")
    assert [case.fold for case in layout.read(raw)[0].cases] == [1, 0, 1]


@pytest.mark.parametrize(
    ("splits", "key"),
    [
        (split(["c1"], ["c2", "c3", "c4"]), ": 0"),
        ([{"train": ["c1"], "val": ["c2"]}], ": 0"),
        ([{"train": ["c1", "c2"], "val": ["c2", "c3"]}], ": 0"),
        (split(["c1", "c2", "c3"]) * 2, ""),
        ([{"train": ["c1"]}], ""),
        ({"train": 1}, ""),
        ([{"train": [["c1"]], "val": []}], ""),
    ],
    ids=["unknown id", "unused id", "in both", "in two folds", "no val", "no list", "nested"],
)
def test_splits_that_are_no_cross_validation_are_refused(write, refused, splits, key):
    layout, raw = write(NnUnet, case_ids=["c1", "c2", "c3"])
    write_json(raw, json.dumps(splits), name="splits_final.json")
    with refused(f"{raw / 'splits_final.json'}{key}"):
        layout.read(raw)


def give_folds(kind, layout, raw, folds):
    if kind is Csv:
        heading, *rows = layout.rows(raw, folds)
        values = ["" if fold is None else fold for fold in folds.values()]
        write_csv(raw, [[*heading, "fold"], *([*row, fold] for row, fold in zip(rows, values, strict=True))])
        return
    name = "folds.json" if kind is Datalist else "dataset.json"
    content = json.loads((raw / name).read_text())
    for entry, fold in zip(content["training"], folds.values(), strict=True):
        entry |= {} if fold is None else {"fold": fold}
    write_json(raw, content, name=name)


with_folds = pytest.mark.parametrize("kind", [Csv, Datalist, Decathlon, OwnManifest], ids=lambda kind: kind.__name__)


@with_folds
def test_given_folds_are_taken_and_a_case_without_one_is_only_trained_on(write, kind):
    folds = {"c1_a": 1, "c2_a": 0, "c2_b": 0, "c3_a": None}
    layout, raw = write(kind, case_ids=[*folds])
    give_folds(kind, layout, raw, folds)
    options = {} if kind is OwnManifest else {"patient": r"(c\d)_."}
    assert {case.case_id: case.fold for case in layout.read(raw, **options)[0].cases} == folds


@with_folds
@pytest.mark.parametrize(
    ("folds", "case_id"),
    [({"c1_a": 0, "c1_b": 1}, "c1_b"), ({"c1_a": 0, "c1_b": None}, "c1_b"), ({"c1": 5, "c2": 0}, "c1")],
)
def test_a_patient_in_two_folds_and_a_fold_above_four_are_refused(write, refused, kind, folds, case_id):
    layout, raw = write(kind, case_ids=[*folds])
    give_folds(kind, layout, raw, folds)
    with refused(f"{case_id}: fold"):
        layout.read(raw, patient=r"(c\d)")


@pytest.mark.parametrize("fold", ["one", "-1", "0.5", "²"])
def test_a_fold_that_is_no_number_is_refused_with_its_line(write, refused, fold):
    layout, raw = write(Csv, case_ids=["c1"])
    give_folds(Csv, layout, raw, {"c1": fold})
    with refused(f"{raw / 'cases.csv'}: line 2: fold", got=fold):
        layout.read(raw)


def test_validation_entries_of_a_datalist_are_fold_0_and_test_entries_may_be_paths(write, refused):
    layout, raw = write(Datalist, case_ids=["c1", "c2", "c3", "c4"])
    first, second, third, fourth = (layout.entry(raw, f"c{number}") for number in range(1, 5))
    content = {"training": [first, second], "validation": [third], "testing": [fourth["image"]]}
    write_json(raw, content, name="folds.json")
    manifest, errors = layout.read(raw)
    assert errors == []
    found = {(case.case_id, case.split, case.fold, case.label is None) for case in manifest.cases}
    assert found == {
        ("c1", "training", None, False),
        ("c2", "training", None, False),
        ("c3", "training", 0, False),
        ("c4", "test", None, True),
    }
    write_json(raw, content | {"training": [first | {"fold": 1}]}, name="folds.json")
    with refused(f"{raw / 'folds.json'}: fold", got=[1]):
        layout.read(raw)


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        (3, "entry"),
        ({}, "image"),
        ({"image": []}, "image"),
        ({"image": {"T1": "a"}}, "image"),
        ({"image": "images/c1_0000.nii.gz", "label": 4}, "label"),
        ({"image": "images/c1_0000.nii.gz"}, "label"),
        ({"image": "images/absent.nii.gz", "label": "labels/c1.nii.gz"}, "image"),
        ({"image": "x" * 5000, "label": "labels/c1.nii.gz"}, "image"),
        ({"image": ["images/c1_0000.nii.gz"] * 3, "label": "labels/c1.nii.gz"}, "image"),
        ({"image": "images/c1_0000.nii.gz", "label": "labels/c1.nii.gz", "patient_id": ["a"]}, "patient"),
        ({"image": "images/c1_0000.nii.gz", "label": "labels/c1.nii.gz", "case_id": "a/b"}, "case_id"),
    ],
)
def test_a_wrong_entry_of_a_datalist_is_named_and_the_others_go_on(write, entry, key):
    layout, raw = write(Datalist, case_ids=["c1", "c2"])
    content = {"modality": {"0": "T1"}, "training": [entry, layout.entry(raw, "c2")]}
    write_json(raw, content, name="folds.json")
    manifest, [error] = layout.read(raw)
    assert error.key == key
    assert [case.case_id for case in manifest.cases] == ["c2"]


def test_optional_keys_and_columns_are_read(write):
    given = {"patient": "p1", "domain": "GE", "phase": "ED", "group": "DCM"}
    layout, raw = write(Datalist, case_ids=["c1"])
    write_json(raw, {"training": [layout.entry(raw, "c1") | given]}, name="folds.json")
    [from_json] = layout.read(raw)[0].cases
    (raw / "folds.json").unlink()
    heading, row = Csv().rows(raw, ["c1"])
    write_csv(raw, [[*heading, *map(str.upper, given)], [*row, *given.values()]])
    [from_csv] = layout.read(raw)[0].cases
    assert from_json == from_csv
    assert (from_csv.patient_id, from_csv.domain, from_csv.phase, from_csv.group) == tuple(given.values())


def test_test_rows_of_a_table_need_no_label_and_paths_may_be_absolute(write, tmp_path):
    layout, raw = write(Csv, case_ids=["c1"])
    (tmp_path / "far.nii.gz").touch()
    heading, row = layout.rows(raw, ["c1"])
    write_csv(raw, [[*heading, "split"], [*row, "train"], ["t1", tmp_path / "far.nii.gz", "", "Test"]])
    manifest, errors = layout.read(raw)
    assert errors == []
    assert {(case.case_id, case.split, case.fold) for case in manifest.cases} == {
        ("c1", "training", 0),
        ("t1", "test", None),
    }


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("", "image"),
        ("case,label\nc1,a", "image"),
        ("image,case\na,c1", "label"),
        ("image,label,Label\na,b,c", "label"),
        ("image,label,case,case_id\na,b,c,d", "case"),
        ("image,image_t1,label\na,b,c", "image"),
        ("image,label,pateint\na,b,c", "pateint"),
        ("image,label\na,b,c", "line 2"),
    ],
)
def test_wrong_columns_are_refused_by_name(tmp_path, refused, text, key):
    (tmp_path / "cases.csv").write_text(text)
    with refused(f"{tmp_path / 'cases.csv'}: {key}"):
        read_folder(tmp_path, layout="csv", case_list="cases.csv")


@pytest.mark.parametrize("content", [b"\xff\xfei\x00m\x00a\x00g\x00e\x00", "image,label\nb\xfcro,b".encode("latin-1")])
def test_a_table_in_another_encoding_is_refused(tmp_path, refused, content):
    (tmp_path / "cases.csv").write_bytes(content)
    with refused(str(tmp_path / "cases.csv")) as error:
        read_folder(tmp_path)
    assert "UTF-8" in error.value.fix


def test_other_columns_are_left_out_with_a_warning(write):
    layout, raw = write(Csv, case_ids=["c1"])
    heading, row = layout.rows(raw, ["c1"])
    write_csv(raw, [[*heading, "age"], [*row, "44"]])
    with pytest.warns(ScanWarning, match="left out are the columns age"):
        assert layout.read(raw)[1] == []


def test_a_wrong_split_is_named_and_blank_lines_are_skipped(write):
    layout, raw = write(Csv, case_ids=["c1"])
    heading, row = layout.rows(raw, ["c1"])
    write_csv(raw, [[*heading, "split"], [], [*row, "val"], ["c2", *row[1:], ""]])
    manifest, [error] = layout.read(raw)
    assert (error.case_id, error.key, error.got) == ("line_3", "split", "val")
    assert [case.case_id for case in manifest.cases] == ["c2"]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"images": "images/*.mha", "labels": "labels/*.nii.gz"}, "images"),
        ({"images": "images/*_0000.nii.gz", "labels": "masks/*"}, "labels"),
        ({"images": "../raw/images/*", "labels": "labels/*"}, "images"),
        ({"images": "/*", "labels": "labels/*"}, "images"),
        ({"images": "images/c1_0000.nii.gz", "labels": "labels/*"}, "images"),
        ({"images": "images/[a-z]*.nii.gz", "labels": "labels/*"}, "images"),
        ({"images": "**images/*", "labels": "labels/*"}, "images"),
        ({"images": "images/*_????.nii.gz", "labels": "labels/*.nii.gz"}, "labels"),
        ({"images": {"a": "images/*_0000.nii.gz", "b": "images/*_0007.nii.gz"}, "labels": "labels/*"}, "images.b"),
        ({"images": {}, "labels": "labels/*"}, "images"),
        ({"images": "images/*"}, "labels"),
        ({"layout": "pairs"}, "images"),
        ({"layout": "nnunet", "labels": "labels/*", "images": "images/*"}, "images"),
        ({"layout": "manifest", "case_list": "dataset.json"}, "case_list"),
        ({"patient": "(p"}, "patient"),
        ({"patient": "p.*"}, "patient"),
        ({"patient": "(p)(.)"}, "patient"),
    ],
)
def test_wrong_globs_and_options_are_refused_by_their_keys(write, refused, options, key):
    _, raw = write(Pairs, case_ids=["c1", "c2"])
    with refused(f"dataset.{key}"):
        read_folder(raw, **options)


def test_globs_pair_folders_of_dicom_and_names_with_any_suffix(tmp_path):
    for name in ("ct/p1", "ct/p2", "seg", "ct/.hidden"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("p1.nii.gz", "p2.seg.nrrd", "._p1.nii.gz"):
        (tmp_path / "seg" / name).touch()
    manifest, errors = read_folder(tmp_path, images="ct/*", labels="seg/*", structures={"a": 1})
    assert errors == []
    assert [(case.case_id, case.image) for case in manifest.cases] == [
        ("p1", tmp_path / "ct/p1"),
        ("p2", tmp_path / "ct/p2"),
    ]


def test_labels_next_to_their_images_are_no_images(tmp_path, refused):
    for name in ("a.nii.gz", "a_gt.nii.gz", "b.nii.gz", "b_gt.nii.gz"):
        (tmp_path / name).touch()
    manifest, errors = read_folder(tmp_path, images="*.nii.gz", labels="*_gt.nii.gz", structures={"a": 1})
    assert errors == []
    assert [case.image.name for case in manifest.cases] == ["a.nii.gz", "b.nii.gz"]
    with refused("dataset.images", got="*.nii.gz"):
        read_folder(tmp_path, images="*.nii.gz", labels="*.nii.gz")


def test_an_image_that_is_its_own_label_is_named(write):
    layout, raw = write(Csv, case_ids=["c1", "c2"])
    heading, first, second = layout.rows(raw, ["c1", "c2"])
    write_csv(raw, [heading, first, [*second[:2], second[1]]])
    manifest, [error] = layout.read(raw)
    assert (error.case_id, error.key) == ("c2", "label")
    assert [case.case_id for case in manifest.cases] == ["c1"]


def test_an_unreadable_table_of_another_kind_is_no_second_layout(write):
    layout, raw = write(NnUnet, case_ids=["c1"])
    (raw / "patients.csv").write_bytes("n\xe4me\n".encode("latin-1"))
    assert layout.read(raw)[1] == []


def test_a_case_whose_patient_is_not_found_is_named(write):
    layout, raw = write(Pairs, case_ids=["p1_va", "x_va"])
    manifest, [error] = layout.read(raw, patient=PATIENT)
    assert (error.case_id, error.key) == ("x_va", "patient")
    assert [case.case_id for case in manifest.cases] == ["p1_va"]


def test_two_layouts_in_one_folder_are_refused_until_one_is_named(write, refused):
    layout, raw = write(Csv, case_ids=["c1", "c2"])
    Decathlon().describe(raw, ["c3"])
    with refused(str(raw), got="the layouts decathlon and csv"):
        layout.read(raw)
    assert [case.case_id for case in layout.read(raw, layout="csv")[0].cases] == ["c1", "c2"]
    with refused(str(raw), got="cases.csv and more.csv"):
        write_csv(raw, layout.rows(raw, ["c1"]), name="more.csv")
        layout.read(raw, layout="csv")
    assert [case.case_id for case in layout.read(raw, case_list="more.csv")[0].cases] == ["c1"]


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "[1]", "7"])
@pytest.mark.parametrize("layout", ["auto", "nnunet", "decathlon", "manifest"])
def test_a_damaged_dataset_json_is_refused_by_its_path(tmp_path, refused, content, layout):
    write_json(tmp_path, content)
    with refused(str(tmp_path / "dataset.json")):
        read_folder(tmp_path, layout=layout)


def test_a_dataset_json_of_another_program_and_an_empty_folder_are_refused(tmp_path, refused):
    with refused(str(tmp_path), got="none of these"):
        read_folder(tmp_path)
    write_json(tmp_path, {"plans": 1})
    with refused(str(tmp_path / "dataset.json"), got="the keys plans"):
        read_folder(tmp_path)
    with refused("raw", got=tmp_path / "absent"):
        read_folder(tmp_path / "absent")
    write_json(tmp_path, {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}})
    with refused("raw"):
        read_folder(tmp_path)


def save_label(path, values, dtype=np.uint8):
    array = np.zeros((4, 5, 6), dtype)
    array.flat[: len(values)] = values
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)


def test_values_without_names_are_found_in_the_labels(write, refused):
    layout, raw = write(Pairs, case_ids=["c1", "c2", "c3", "c4"])
    for path in raw.glob("labels/*"):
        path.unlink()
    save_label(raw / "labels/c1.nii.gz", [7, 2])
    save_label(raw / "labels/c2.nii.gz", [500.0, 9], np.float32)
    save_label(raw / "labels/c3.nii.gz", [0.5], np.float32)
    save_label(raw / "labels/c4.nii.gz", [])
    manifest, [error] = layout.read(raw, structures=None, ignore_value=9)
    assert manifest.structures == {"label_2": 2, "label_7": 7, "label_500": 500}
    assert (error.case_id, error.key) == ("c3", "label")
    assert [case.case_id for case in manifest.cases] == ["c1", "c2", "c4"]
    for name in ("c1", "c2", "c3"):
        (raw / f"labels/{name}.nii.gz").unlink()
        (raw / f"images/{name}_0000.nii.gz").unlink()
    with refused("dataset.structures"):
        layout.read(raw, structures=None)


def test_an_image_in_place_of_a_label_is_named(write):
    layout, raw = write(Pairs, case_ids=["c1", "c2"])
    for path in raw.glob("labels/*"):
        path.unlink()
    save_label(raw / "labels/c1.nii.gz", [1])
    generator = np.random.default_rng(0)
    nib.save(
        nib.Nifti1Image(generator.integers(0, 900, (9, 9, 9)).astype(np.int16), np.eye(4)), raw / "labels/c2.nii.gz"
    )
    manifest, [error] = layout.read(raw, structures=None)
    assert (error.case_id, error.key) == ("c2", "label")
    assert manifest.structures == {"label_1": 1}


def test_a_manifest_from_python_keeps_everything(write):
    layout, raw = write(OwnManifest)
    written = Manifest.read(raw)
    extra = Manifest(
        written.name, "CT", {"a": 1}, written.cases, "Who", "CC0", {"sides": {"a": "left"}}, colours={"a": "#000000"}
    )
    extra.write(raw / "dataset.json")
    manifest, errors = layout.read(raw)
    assert errors == []
    for key in ("name", "modality", "structures", "reference", "licence", "extra", "colours"):
        assert getattr(manifest, key) == getattr(extra, key)
    assert {case.fold for case in manifest.cases} == {*range(5)}


def test_an_own_manifest_is_read_whole_by_any_name_of_its_layout(write):
    layout, raw = write(OwnManifest)
    change_json(raw, ignore_value=9)
    for options in ({"layout": "datalist"}, {"layout": "decathlon"}, {"case_list": "dataset.json"}):
        assert layout.read(raw, **options)[0].ignore_value == 9


def test_an_unknown_option_is_refused(tmp_path, refused):
    with refused("image"):
        read_folder(tmp_path, image="images/*")
    with refused("layout", got="nnunet2"):
        read_folder(tmp_path, layout="nnunet2")


def test_the_older_nnunet_and_the_decathlon_are_told_apart_by_the_files(write):
    layout, raw = write(NnUnetV1, case_ids=["c1"])
    assert [case.image.name for case in layout.read(raw)[0].cases] == ["c1_0000.nii.gz"]
    assert re.fullmatch("raw", layout.read(raw)[0].name)
