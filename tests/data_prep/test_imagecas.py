import json
import os

import nibabel as nib
import numpy as np
import pytest

from data_prep import read_imagecas
from uumamba.data.case import Manifest
from uumamba.data.scan import read_label
from uumamba.pipelines.datasets import read_dataset
from uumamba.runtime.errors import UsageError

AFFINE = np.diag([-0.35, -0.35, 0.5, 1.0])


def add_case(shard, number, *, kinds=("img", "label"), shape=(6, 6, 4), label_shape=None, label_affine=AFFINE):
    shard.mkdir(parents=True, exist_ok=True)
    label = np.zeros(label_shape or shape, np.uint8)
    label[2, 2, 1:3] = 1
    image = nib.Nifti1Image(np.full(shape, -1024, np.int16), AFFINE)
    volumes = {"img": image, "label": nib.Nifti1Image(label, label_affine)}
    for kind in kinds:
        nib.save(volumes[kind], shard / f"{number}.{kind}.nii.gz")


def write_sheet(raw, partitions, *, name="imageCAS_data_split.csv"):
    """Each case's place in Split-1 and in Split-2."""
    lines = [f"{number},{','.join(given.split())}" for number, given in partitions.items()]
    (raw / name).write_text("\n".join(["FileName,Split-1,Split-2", *lines]))


@pytest.fixture
def raw(tmp_path):
    """Cases 1 and 2 of one shard, 201 and 202 of another, and their splits."""
    for number in (1, 2):
        add_case(tmp_path / "1-200", number)
    for number in (201, 202):
        add_case(tmp_path / "201-400", number)
    splits = {1: "Training Testing", 2: "Validation Training", 201: "Training Validation", 202: "Testing Training"}
    write_sheet(tmp_path, splits)
    return tmp_path


def case_ids(manifest, **which):
    return [case.case_id for case in manifest.select(**which)]


def test_every_shard_gives_its_cases_with_image_and_label(raw):
    manifest, errors = read_imagecas(raw)
    case = manifest.cases[0]

    assert errors == []
    assert case_ids(manifest) == ["imagecas0001", "imagecas0002", "imagecas0201", "imagecas0202"]
    assert (case.patient_id, case.domain) == ("imagecas0001", "imagecas")
    assert (case.image, case.label) == (raw / "1-200" / "1.img.nii.gz", raw / "1-200" / "1.label.nii.gz")
    assert set(np.unique(read_label(case.label, structures=manifest.structures).array)) == {0, 1}


def test_the_manifest_names_structure_licence_citation_and_split(raw):
    manifest, _ = read_imagecas(raw, split="Split-2")

    assert (manifest.name, manifest.modality, manifest.structures) == ("ImageCAS", "CT angiography", {"coronary": 1})
    assert "10.1016/j.compmedimag.2023.102287" in manifest.reference
    assert "Apache-2.0 as stated on Kaggle" in manifest.licence
    assert manifest.extra == {"official_split": "Split-2"}


@pytest.mark.parametrize(
    ("split", "training", "validation", "test"),
    [
        ("Split-1", ["imagecas0001", "imagecas0201"], ["imagecas0002"], ["imagecas0202"]),
        ("Split-2", ["imagecas0002", "imagecas0202"], ["imagecas0201"], ["imagecas0001"]),
    ],
)
def test_fold_0_trains_and_validates_as_published(raw, split, training, validation, test):
    manifest, _ = read_imagecas(raw, split=split)

    assert case_ids(manifest, split="training", without_fold=0) == training
    assert case_ids(manifest, fold=0) == validation
    assert case_ids(manifest, split="test") == test
    assert [case.fold for case in manifest.select(split="test")] == [None]


def test_the_names_of_a_config_choose_the_split(raw):
    assert read_dataset("imagecas", raw) == read_imagecas(raw)
    assert read_dataset("imagecas_split2", raw) == read_imagecas(raw, split="Split-2")
    with pytest.raises(UsageError, match="no column Split-4"):
        read_dataset("imagecas_split4", raw)


def test_the_official_numbers_of_cases_are_dealt_to_five_folds(tmp_path):
    partition = dict.fromkeys(range(1, 701), "Training Testing")
    partition |= dict.fromkeys(range(701, 751), "Validation Testing")
    partition |= dict.fromkeys(range(751, 1001), "Testing Training")
    write_sheet(tmp_path, partition)
    for number in range(1, 1001):
        link_case(tmp_path, number)

    manifest, errors = read_imagecas(tmp_path)

    assert errors == []
    # 700 training cases are dealt to four folds; the fifth is the official validation set.
    assert [len(manifest.select(fold=fold)) for fold in range(5)] == [50, 175, 175, 175, 175]
    assert len(manifest.select(split="test")) == 250


def link_case(folder, number):
    """A case that shares its files' bytes with all others: a thousand of them take no time."""
    if not (folder / "whole").exists():
        add_case(folder / "whole", 0)
        (folder / "whole").rename(folder / ".whole")
        (folder / "whole").mkdir()
    for kind in ("img", "label"):
        os.link(folder / ".whole" / f"0.{kind}.nii.gz", folder / "whole" / f"{number}.{kind}.nii.gz")


def test_without_a_validation_set_all_folds_are_dealt(tmp_path):
    for number in range(1, 6):
        add_case(tmp_path, number)
    write_sheet(tmp_path, dict.fromkeys(range(1, 6), "Training Testing"))

    manifest, _ = read_imagecas(tmp_path)

    assert sorted(case.fold for case in manifest.cases) == [0, 1, 2, 3, 4]


def test_the_official_workbook_is_read_by_its_latest_sheet(raw, write_workbook):
    (raw / "imageCAS_data_split.csv").unlink()
    old = [["Official split"], ["FileName", "Split-1"], [10016975, "Testing"]]
    latest = [
        ["ImageCAS", None, "700 / 50 / 250"],
        ["FileName", "Split-1", "Split-2"],
        [1, "Training", "Testing"],
        [2, "Validation", "Training"],
        [201, "Training", "Validation"],
        ["202", "Testing ", "Training"],
    ]
    write_workbook(raw / "imageCAS_data_split.xlsx", {"v1": old, "v2-latest": latest})

    manifest, errors = read_imagecas(raw)

    assert errors == []
    assert case_ids(manifest, fold=0) == ["imagecas0002"]
    assert case_ids(manifest, split="test") == ["imagecas0202"]


def test_a_csv_file_wins_over_the_workbook_and_the_uppermost_over_others(raw):
    (raw / "imageCAS_data_split.xlsx").write_bytes(b"never opened")
    (raw / "1-200" / "imageCAS_data_split.csv").write_text("lies lower, never opened")

    assert read_imagecas(raw)[1] == []


def damage(name):
    def cut(raw):
        path = raw / "1-200" / name
        os.truncate(path, path.stat().st_size // 2)

    return cut


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (damage("2.img.nii.gz"), "imagecas0002: 2.img.nii.gz is cut off: its compressed data end early; restore"),
        (damage("2.label.nii.gz"), "imagecas0002: 2.label.nii.gz is cut off: its compressed data end early; restore"),
        (
            lambda raw: (raw / "1-200" / "2.img.nii.gz").write_bytes(b""),
            "imagecas0002: 2.img.nii.gz is empty (0 bytes); restore",
        ),
        (
            lambda raw: add_case(raw / "1-200", 2, label_shape=(6, 6, 5)),
            "imagecas0002: the image has the shape (6, 6, 4), its label (6, 6, 5); give the label of this image.",
        ),
        (
            lambda raw: add_case(raw / "1-200", 2, label_affine=AFFINE @ np.diag([-1, 1, 1, 1])),
            "imagecas0002: image and label lie up to 10.0 voxels apart by their affines; resample",
        ),
        (
            lambda raw: (raw / "1-200" / "2.label.nii.gz").unlink(),
            "imagecas0002: its label 2.label.nii.gz is missing; restore it from the archive of its shard.",
        ),
        (
            lambda raw: (raw / "1-200" / "2.img.nii.gz").unlink(),
            "imagecas0002: its image 2.img.nii.gz is missing; restore it from the archive of its shard.",
        ),
        (lambda raw: add_case(raw / "copy", 2), "imagecas0002: its image is found twice, as "),
        (
            lambda raw: write_sheet(raw, {1: "Training -", 201: "Training -", 202: "Testing -"}),
            "imagecas0002: the split sheet does not list it; add a row for 2, or move its files away.",
        ),
        (
            lambda raw: write_sheet(raw, {1: "Training -", 2: "Both -", 201: "Training -", 202: "Testing -"}),
            "imagecas0002: the split sheet gives 'Both' as its Split-1; write Training, Validation or Testing.",
        ),
    ],
)
def test_a_bad_case_is_reported_by_name_and_the_others_stay(raw, spoil, problem):
    spoil(raw)

    manifest, errors = read_imagecas(raw)

    assert case_ids(manifest) == ["imagecas0001", "imagecas0201", "imagecas0202"]
    assert len(errors) == 1
    assert str(errors[0]).startswith(problem)


def test_a_lost_case_moves_no_fold(tmp_path):
    for number in range(1, 21):
        add_case(tmp_path, number)
    write_sheet(tmp_path, dict.fromkeys(range(1, 21), "Training Testing"))
    whole, _ = read_imagecas(tmp_path)
    for kind in ("img", "label"):
        (tmp_path / f"7.{kind}.nii.gz").unlink()

    manifest, errors = read_imagecas(tmp_path)

    assert [error.case_id for error in errors] == ["imagecas0007"]
    assert manifest.cases == tuple(case for case in whole.cases if case.case_id != "imagecas0007")


def test_cases_of_the_sheet_without_files_are_reported_a_run_at_a_time(raw):
    splits = dict.fromkeys((1, 2, 5, 201, 202, *range(401, 601)), "Training Training")
    write_sheet(raw, splits)

    manifest, errors = read_imagecas(raw)

    assert len(manifest.cases) == 4
    assert [str(error) for error in errors] == [
        "imagecas0005: the split sheet lists 1 case(s) here without any file; restore it from the archive of its "
        "shard, or take the row out of the sheet.",
        "imagecas0401-0600: the split sheet lists 200 case(s) here without any file; restore it from the archive of "
        "its shard, or take the row out of the sheet.",
    ]


def test_a_shard_that_is_still_packed_is_reported_with_the_command(raw, write_multipart_zip):
    write_sheet(raw, dict.fromkeys((1, 2, 201, 202, *range(401, 601)), "Training Training"))
    write_multipart_zip(raw, "201-400")  # unpacked already
    write_multipart_zip(raw, "401-600")

    manifest, errors = read_imagecas(raw)

    assert len(manifest.cases) == 4
    assert [str(error) for error in errors] == [
        f"401-600: this shard is still packed; unpack it: cd {raw} && mv 401-600.change2zip 401-600.zip && "
        "7z x 401-600.zip."
    ]


def test_a_packed_shard_that_lacks_a_part_is_reported_and_the_rest_goes_on(raw, write_multipart_zip):
    write_multipart_zip(raw, "401-600")[2].unlink()
    os.truncate(write_multipart_zip(raw, "601-800")[1], 2**19)

    manifest, errors = read_imagecas(raw)

    assert len(manifest.cases) == 4
    assert [str(error) for error in errors] == [
        "401-600: of the archive's 4 numbered parts 1 is missing: 401-600.z03; download the archive's parts anew and "
        "unpack it.",
        "601-800: the archive's part 601-800.z02 is cut off (524288 of 1048576 bytes); download the archive's parts "
        "anew and unpack it.",
    ]


def test_a_shard_half_unpacked_from_an_archive_that_lacks_a_part_is_told_with_the_part(raw, write_multipart_zip):
    write_sheet(raw, dict.fromkeys((1, 2, 5, 6, 201, 202), "Training Training"))
    write_multipart_zip(raw, "1-200")[1].unlink()
    write_multipart_zip(raw, "201-400")[1].unlink()  # all of it was unpacked before

    manifest, errors = read_imagecas(raw)

    assert len(manifest.cases) == 4
    assert [str(error) for error in errors] == [
        "1-200: of the archive's 4 numbered parts 1 is missing: 1-200.z02, and of its listed cases 5-6 lack their "
        "files; download the archive's parts anew and unpack it."
    ]


def test_archives_alone_are_refused_with_the_commands_that_unpack_them(tmp_path, write_multipart_zip):
    for shard in ("1-200", "201-400"):
        write_multipart_zip(tmp_path, shard)

    with pytest.raises(UsageError) as refused:
        read_imagecas(tmp_path)

    assert str(refused.value) == (
        f"The 2 archives in {tmp_path} are still packed; unpack them with 7-Zip: "
        f"(cd {tmp_path} && mv 1-200.change2zip 1-200.zip && 7z x 1-200.zip); "
        f"(cd {tmp_path} && mv 201-400.change2zip 201-400.zip && 7z x 201-400.zip)"
    )


def test_archives_alone_with_a_lost_part_say_which(tmp_path, write_multipart_zip):
    write_multipart_zip(tmp_path, "1-200")
    write_multipart_zip(tmp_path, "201-400")[-1].unlink()

    with pytest.raises(UsageError, match=r"not whole \(201-400: the last part of the archive \(201-400\.change2zip or"):
        read_imagecas(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (
            lambda raw: (raw / "imageCAS_data_split.csv").unlink(),
            r"No split sheet was found in .*; put imageCAS_data_split\.xlsx of the Kaggle download there, or a CSV",
        ),
        (
            lambda raw: write_sheet(raw, {10016975: "Training Training"}),
            r"None of the 1 cases of the split sheet has files in .*, which has 1-2, 201-202; give the sheet v2-latest",
        ),
        (
            lambda raw: (raw / "imageCAS_data_split.csv").write_text("FileName,Fold\n1,Training\n"),
            r"imageCAS_data_split\.csv has no column Split-1; give the official sheet v2-latest",
        ),
        (
            lambda raw: (raw / "imageCAS_data_split.csv").write_text("FileName,Split-1\n\n"),
            r"imageCAS_data_split\.csv lists no case below its column FileName",
        ),
        (
            lambda raw: (raw / "imageCAS_data_split.csv").write_text("FileName,Split-1\n1,Training\n1,Testing\n"),
            r"imageCAS_data_split\.csv lists the case 1 twice; delete one of the rows",
        ),
    ],
)
def test_a_split_that_is_not_known_is_refused_and_never_guessed(raw, spoil, problem):
    spoil(raw)

    with pytest.raises(UsageError, match=problem):
        read_imagecas(raw)


@pytest.mark.parametrize("number", ["1", "1.0", "1.img.nii.gz"])
def test_a_case_number_is_read_however_the_sheet_writes_it(tmp_path, number):
    add_case(tmp_path, 1)
    write_sheet(tmp_path, {number: "train test"})

    manifest, errors = read_imagecas(tmp_path)

    assert errors == []
    assert case_ids(manifest, split="training") == ["imagecas0001"]


def test_a_missing_or_empty_folder_is_refused(tmp_path):
    with pytest.raises(
        UsageError, match=r"raw ImageCAS folder .*absent does not exist; expected 1-200/1\.img\.nii\.gz"
    ):
        read_imagecas(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"No case was found in .*; expected 1-200/1\.img\.nii\.gz"):
        read_imagecas(tmp_path)


def test_the_manifest_has_equal_bytes_wherever_the_data_lie(raw, tmp_path):
    read_imagecas(raw)[0].write(raw / "dataset.json")
    moved = tmp_path.parent / f"{tmp_path.name}_moved"
    before = (raw / "dataset.json").read_bytes()
    raw.rename(moved)
    read_imagecas(moved)[0].write(moved / "dataset.json")

    assert (moved / "dataset.json").read_bytes() == before
    assert Manifest.read(moved) == read_imagecas(moved)[0]
    assert json.loads(before)["official_split"] == "Split-1"
