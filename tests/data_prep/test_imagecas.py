import os

import pytest

from data_prep import read_imagecas
from tests.data_prep.raw_layouts import ImageCas, case_ids, read_all, write_split_sheet, write_workbook
from uumamba.pipelines.datasets import read_dataset

SPLITS = {1: "Training Testing", 2: "Validation Training", 5: "Training Validation", 6: "Testing Training"}


@pytest.fixture
def raw(tmp_path):
    """Write four cases in two shards, and their splits."""
    for number in SPLITS:
        ImageCas().write_patient(tmp_path, number)
    write_split_sheet(tmp_path, SPLITS)
    return tmp_path


def test_every_shard_gives_its_cases_with_licence_citation_and_split(raw):
    manifest = read_all(read_imagecas, raw, split="Split-2")
    case = manifest.cases[0]

    assert (case.patient_id, case.domain) == ("imagecas0001", "imagecas")
    assert (case.image, case.label) == (raw / "1-4" / "1.img.nii.gz", raw / "1-4" / "1.label.nii.gz")
    assert (manifest.name, manifest.modality, manifest.structures) == ("ImageCAS", "CT angiography", {"coronary": 1})
    assert "10.1016/j.compmedimag.2023.102287" in manifest.reference
    assert "Apache-2.0 as stated on Kaggle" in manifest.licence
    assert manifest.extra == {"official_split": "Split-2"}


@pytest.mark.parametrize(
    ("split", "name", "training", "validation", "test"),
    [
        ("Split-1", "imagecas", ["imagecas0001", "imagecas0005"], ["imagecas0002"], ["imagecas0006"]),
        ("Split-2", "imagecas_split2", ["imagecas0002", "imagecas0006"], ["imagecas0005"], ["imagecas0001"]),
    ],
)
def test_fold_0_trains_and_validates_as_published(raw, split, name, training, validation, test):
    manifest, errors = read_imagecas(raw, split=split)

    assert case_ids(manifest, split="training", without_fold=0) == training
    assert case_ids(manifest, fold=0) == validation
    assert case_ids(manifest, split="test") == test
    assert [case.fold for case in manifest.select(split="test")] == [None]
    assert read_dataset(name, raw) == (manifest, errors)


def test_training_cases_are_dealt_to_the_four_folds_after_the_official_validation_set(tmp_path):
    names = ["Training"] * 9 + ["Validation"] * 2 + ["Testing"]
    write_split_sheet(tmp_path, dict(enumerate(names, start=1)))
    for number in range(1, 13):
        ImageCas().write_patient(tmp_path, number)

    manifest = read_all(read_imagecas, tmp_path)
    assert [len(manifest.select(fold=fold)) for fold in range(5)] == [2, 3, 2, 2, 2]


def test_the_official_workbook_is_read_by_its_latest_sheet(raw):
    (raw / "imageCAS_data_split.csv").unlink()
    old = [["Official split"], ["FileName", "Split-1"], [10016975, "Testing"]]
    latest = [
        ["ImageCAS", None, "700 / 50 / 250"],
        ["FileName", "Split-1", "Split-2"],
        [1, "Training", "Testing"],
        [2, "Validation", "Training"],
        [5, "Training", "Validation"],
        ["6", "Testing ", "Training"],
    ]
    write_workbook(raw / "imageCAS_data_split.xlsx", {"v1": old, "v2-latest": latest})

    manifest = read_all(read_imagecas, raw)
    assert case_ids(manifest, fold=0) == ["imagecas0002"]
    assert case_ids(manifest, split="test") == ["imagecas0006"]


def test_a_csv_file_takes_precedence_over_the_workbook_and_the_uppermost_over_others(raw):
    (raw / "imageCAS_data_split.xlsx").write_bytes(b"never opened")
    (raw / "1-4" / "imageCAS_data_split.csv").write_text("further down, never opened")

    read_all(read_imagecas, raw)


@pytest.mark.parametrize(
    ("splits", "got"),
    [(SPLITS | {2: "Both Training"}, "Both"), ({1: "Training", 5: "Training", 6: "Testing"}, "")],
)
def test_a_case_without_a_partition_is_reported_and_the_others_are_kept(raw, splits, got):
    write_split_sheet(raw, splits)

    manifest, (error,) = read_imagecas(raw)

    assert case_ids(manifest) == ["imagecas0001", "imagecas0005", "imagecas0006"]
    assert (error.case_id, error.key, error.got) == ("imagecas0002", "Split-1", got)


def test_a_case_found_twice_is_reported_with_both_places(raw):
    (raw / "copy").mkdir()
    os.link(raw / "1-4" / "2.img.nii.gz", raw / "copy" / "2.img.nii.gz")

    _, (error,) = read_imagecas(raw)

    assert (error.case_id, error.key) == ("imagecas0002", "image")
    assert all(str(raw / folder / "2.img.nii.gz") in error.got for folder in ("1-4", "copy"))


def test_cases_of_the_sheet_without_files_are_reported_by_runs_of_numbers(raw):
    write_split_sheet(raw, SPLITS | dict.fromkeys((8, *range(401, 601)), "Training"))

    manifest, errors = read_imagecas(raw)

    assert len(manifest.cases) == 4
    assert [(error.case_id, error.got) for error in errors] == [
        ("imagecas0008", "no file"),
        ("imagecas0401-0600", "no file of 200 cases"),
    ]


def test_archives_that_are_still_packed_are_refused_with_the_command(tmp_path, refused):
    for name in ("1-200.z01", "1-200.change2zip", "201-400.z01", "201-400.change2zip"):
        (tmp_path / name).touch()

    with refused("raw", got=tmp_path) as error:
        read_imagecas(tmp_path)
    assert "`mv 1-200.change2zip 1-200.zip && 7z x 1-200.zip`" in error.value.fix


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("FileName,Fold\n1,Training\n", "no column Split-1"),
        ("FileName,Split-1\n\n", "no case"),
        ("FileName,Split-1\n1,Training\n1,Testing\n", "case 1 twice"),
    ],
)
def test_a_faulty_split_sheet_is_refused_and_never_guessed(raw, refused, text, got):
    sheet = raw / "imageCAS_data_split.csv"
    sheet.write_text(text)

    with refused(str(sheet), got=got):
        read_imagecas(raw)


def test_a_missing_split_sheet_and_one_of_other_cases_are_refused(raw, refused):
    write_split_sheet(raw, {10016975: "Training"})
    with refused(str(raw / "imageCAS_data_split.csv"), got="none of the cases 1 to 6"):
        read_imagecas(raw)

    (raw / "imageCAS_data_split.csv").unlink()
    with refused("raw", got=raw):
        read_imagecas(raw)


@pytest.mark.parametrize("number", ["1", "1.0", "1.img.nii.gz"])
def test_a_case_number_is_read_however_the_sheet_writes_it(tmp_path, number):
    ImageCas().write_patient(tmp_path, 1)
    write_split_sheet(tmp_path, {number: "train test"})

    assert case_ids(read_all(read_imagecas, tmp_path), split="training") == ["imagecas0001"]
