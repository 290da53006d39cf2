"""A file is the same case in preparing, prediction and evaluation."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from uumamba.data.case import Case, Manifest
from uumamba.data.case_files import find_cases, find_scans, is_manifest, name_case
from uumamba.data.warn import ScanWarning
from uumamba.pipelines.datasets import find_predictions
from uumamba.pipelines.prediction.input_scans import find_inputs


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("name", "case_id"),
    [
        ("a.nii.gz", "a"),
        ("A.NII.GZ", "A"),
        ("a.b.nii", "a.b"),
        ("a_0000.nii.gz", "a"),
        ("a_0001.nii.gz", "a_0001"),
        ("a.seg.nrrd", "a"),
        ("a.nhdr", "a"),
        ("a.mhd", "a"),
        ("a.dcm", "a"),
        ("a.PNG", "a"),
        ("a.jpg", "a.jpg"),
    ],
)
def test_a_file_name_gives_one_case_id(name: str, case_id: str) -> None:
    assert name_case(Path(name)) == case_id


def test_predict_and_evaluate_take_a_file_for_the_same_case(tmp_path: Path) -> None:
    touch(tmp_path, "scan_0000.nii.gz", "b.mha", "c.seg.nrrd", "notes.txt", ".hidden.nii.gz", "preview.jpg")
    assert list(find_inputs([tmp_path])) == list(find_predictions(tmp_path)) == ["b", "c", "scan"]


@pytest.mark.parametrize(
    ("names", "got"),
    [
        (["a_0000.nii.gz", "a_0001.nii.gz"], "a_0000 and a_0001 in {folder}"),
        (["a.nii.gz", "a.nii"], "{folder}/a.nii and {folder}/a.nii.gz"),
        (["a_0000.nii.gz", "a.mha"], "{folder}/a.mha and {folder}/a_0000.nii.gz"),
    ],
)
def test_channels_and_two_files_of_one_case_are_refused(
    tmp_path: Path, names: Sequence[str], got: str, refused: Any
) -> None:
    touch(tmp_path, *names)
    for find in (find_predictions, lambda folder: find_inputs([folder])):
        with refused("a" if "and {folder}" in got else "--" + ("predictions" if find is find_predictions else "input")):
            find(tmp_path)
    with pytest.raises(ValueError, match="Fix: ") as error:
        find_cases(tmp_path, option="--x")
    assert error.value.got == got.format(folder=tmp_path)


def test_scans_are_found_in_sub_folders_and_dicom_series_by_their_folder(tmp_path: Path) -> None:
    touch(tmp_path, "README", "p1/a.nii.gz", "p1/Info.cfg", "p2/series/1.dcm", "p2/series/2.dcm", "p3/IM0001")
    touch(tmp_path, "p5/notes/x.txt", "p5/IM0001")
    (tmp_path / "p5" / "IM0001").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "p4").symlink_to(tmp_path)
    found = {name: path.relative_to(tmp_path).as_posix() for name, path in find_scans(tmp_path, option="-i").items()}
    assert found == {"a": "p1/a.nii.gz", "series": "p2/series", "p3": "p3", "p5": "p5"}


def test_an_exported_disc_is_searched_in_its_folders(tmp_path: Path) -> None:
    touch(tmp_path, "README", "LOCKFILE", "DICOMDIR", "p1/a.nii.gz", "p2/IM0001")
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert set(find_scans(tmp_path, option="-i")) == {"a", "p2"}


@pytest.mark.parametrize(
    ("names", "case_id", "left_out"),
    [
        (["a.nii.gz", "notes/b.txt", "p2/s/b.nii.gz"], "a", "p2"),
        (["a.nii.gz", "1.dcm", "2.DCM"], "a", "1.dcm, 2.DCM"),
        (["1.dcm", "p2/b.nii.gz"], "scans", "p2"),
        (["a.nii.gz", "a.png", "b.PNG"], "a", "a.png, b.PNG"),
        (["1.dcm", "preview.png"], "scans", "preview.png"),
    ],
)
def test_scans_that_are_left_out_are_named_in_a_warning(
    tmp_path: Path, names: Sequence[str], case_id: str, left_out: str
) -> None:
    touch(tmp_path / "scans", *names)
    with pytest.warns(ScanWarning, match=f"scans: left out are {left_out}; give them"):
        assert list(find_scans(tmp_path / "scans", option="-i")) == [case_id]


def test_pictures_are_scans_unless_scans_of_another_format_are_below(tmp_path: Path) -> None:
    touch(tmp_path, "flat/a.png", "flat/b_0000.png", "flat/notes.txt", "set/overview.png", "set/p1/a.nii.gz")
    assert set(find_scans(tmp_path / "flat", option="-i")) == {"a", "b"} == set(find_predictions(tmp_path / "flat"))
    assert set(find_scans(tmp_path / "set", option="-i")) == {"a"}
    (touch(tmp_path, "disc/plan.png", "disc/s1/IM1") / "disc/s1/IM1").write_bytes(bytes(128) + b"DICM")
    assert set(find_scans(tmp_path / "disc", option="-i")) == {"s1"}


def test_two_sub_folders_of_one_name_are_refused(tmp_path: Path, refused: Any) -> None:
    touch(tmp_path, "p1/series/1.dcm", "p2/series/1.dcm")
    with refused("series", got=f"{tmp_path}/p1/series and {tmp_path}/p2/series"):
        find_scans(tmp_path, option="-i")


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ('{"channel_names": {"0": "MRI"}, "labels": {"a": 0}, "file_ending": ".nii.gz"}', False),
        ('{"name": "Heart", "training": [{"image": "a.nii.gz", "label": "b.nii.gz"}]}', False),
        ("[1, 2]", False),
        ('{"training": [{"case_id": "a"', True),
        ("[" * 100_000, True),
    ],
)  # fmt: skip
def test_a_foreign_dataset_json_is_no_manifest_and_a_damaged_one_is(
    tmp_path: Path, stored: str, expected: bool
) -> None:
    touch(tmp_path, "a.nii.gz")
    assert not is_manifest(tmp_path)
    (tmp_path / "dataset.json").write_text(stored)
    assert is_manifest(tmp_path) == expected
    if not expected:
        assert list(find_inputs([tmp_path])) == ["a"]


def test_a_manifest_is_known_by_its_case_ids_with_or_without_cases(tmp_path: Path) -> None:
    for cases in ((), (Case("a", "a", "", tmp_path / "a.nii.gz"),)):
        Manifest("own", "CT", {"one": 1}, cases).write(tmp_path / "dataset.json")
        assert is_manifest(tmp_path)
        assert json.loads((tmp_path / "dataset.json").read_text())["name"] == "own"


def test_files_of_several_channels_are_grouped_by_their_numbers(tmp_path: Path, refused: Any) -> None:
    touch(tmp_path, "a_0000.nii.gz", "a_0001.mha", "b.nii.gz", "c_0001.nii.gz", "d_2019.nii.gz", "p1/ignored.txt")
    found = {
        name: [path.name for path in (paths if isinstance(paths, tuple) else [paths])]
        for name, paths in find_scans(tmp_path, option="-i", channels=("T1", "FLAIR")).items()
    }
    assert found == {
        "a": ["a_0000.nii.gz", "a_0001.mha"],
        "b": ["b.nii.gz"],
        "c": ["c_0000.nii.gz", "c_0001.nii.gz"],
        "d_2019": ["d_2019.nii.gz"],
    }
    touch(tmp_path, "a.nii.gz")
    with refused("a"):
        find_scans(tmp_path, option="-i", channels=("T1", "FLAIR"))
    touch(tmp_path / "more", "e_0000.nii", "e_0000.nii.gz")
    with refused("e"):
        find_scans(tmp_path / "more", option="-i", channels=("T1", "FLAIR"))


def test_without_a_second_number_each_file_holds_all_channels_as_a_colour_picture_of_nnunet(tmp_path: Path) -> None:
    touch(tmp_path, "a_0000.png", "b_0000.png")
    found = find_scans(tmp_path, option="-i", channels=("R", "G", "B"))
    assert found == {"a": tmp_path / "a_0000.png", "b": tmp_path / "b_0000.png"}
