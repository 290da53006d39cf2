"""The manifest: unique cases, equal bytes for equal data, readable by MONAI, movable."""

import json
import shutil
from pathlib import Path

import pytest

from uumamba.data.case import Case, Manifest
from uumamba.runtime.errors import UsageError


def manifest(folder: Path, **changes: object) -> Manifest:
    cases = tuple(
        Case(f"p{n}_ed", f"p{n}", "here", folder / f"p{n}.nii.gz", folder / f"p{n}_gt.nii.gz", n % 5, "ED", "NOR")
        for n in range(3)
    )
    arguments = {"name": "toy", "modality": "MRI", "structures": {"RV": 1, "LV": 3}, "cases": cases} | changes
    return Manifest(**arguments)  # type: ignore[arg-type]  # keywords are mixed on purpose


def test_a_written_manifest_reads_back_equal(tmp_path: Path) -> None:
    made = manifest(tmp_path / "raw", extra={"note": "kept"})
    made.write(tmp_path / "prepared" / "dataset.json")
    assert Manifest.read(tmp_path / "prepared") == made


def test_equal_data_give_equal_bytes_in_any_order(tmp_path: Path) -> None:
    made = manifest(tmp_path)
    made.write(tmp_path / "a.json")
    manifest(tmp_path, cases=made.cases[::-1]).write(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_moved_folder_is_read_with_its_new_paths(tmp_path: Path) -> None:
    manifest(tmp_path / "one" / "raw").write(tmp_path / "one" / "dataset.json")
    shutil.move(tmp_path / "one", tmp_path / "two")
    assert Manifest.read(tmp_path / "two").cases[0].image == tmp_path / "two" / "raw" / "p0.nii.gz"


def test_monai_reads_the_list_with_its_own_loader(tmp_path: Path) -> None:
    from monai.data import load_decathlon_datalist

    made = manifest(tmp_path)
    made.write(tmp_path / "dataset.json")
    listed = load_decathlon_datalist(tmp_path / "dataset.json", data_list_key="training")
    assert [Path(entry["image"]) for entry in listed] == [case.image for case in made.cases]
    assert [entry["case_id"] for entry in listed] == [case.case_id for case in made.cases]


def test_two_cases_with_one_id_are_refused(tmp_path: Path) -> None:
    case = manifest(tmp_path).cases[0]
    with pytest.raises(UsageError, match="p0_ed 2 times"):
        manifest(tmp_path, cases=(case, case))


@pytest.mark.parametrize("case_id", ["../up", "a/b", "", ".."])
def test_a_case_id_that_is_a_path_is_refused(tmp_path: Path, case_id: str) -> None:
    with pytest.raises(UsageError, match="no plain file name"):
        manifest(tmp_path, cases=(Case(case_id, "p", "d", tmp_path / "i"),))


def test_selection_splits_training_from_validation_and_never_mixes_in_tests(tmp_path: Path) -> None:
    test_case = Case("t", "t", "here", tmp_path / "t.nii.gz", split="test")
    made = manifest(tmp_path, cases=(*manifest(tmp_path).cases, test_case))
    assert [case.case_id for case in made.select(fold=1)] == ["p1_ed"]
    assert [case.case_id for case in made.select(split="training", without_fold=1)] == ["p0_ed", "p2_ed"]
    assert [case.case_id for case in made.select(split="test")] == ["t"]


def test_a_missing_manifest_says_what_writes_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no manifest at .*uumamba prepare"):
        Manifest.read(tmp_path)


def test_another_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"name": 1}')
    with pytest.raises(UsageError, match="is not a data set manifest"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"0": "background", "a": "RV"}}, "labels must be keyed by numbers, found 'a'"),
        ({"labels": {"0": "background", "300": "RV"}}, r"structures have the values 1 to 255, found RV 300"),
        ({"labels": {"0": "background", "-1": "RV"}}, r"structures have the values 1 to 255, found RV -1"),
        ({"fold": "0"}, "fold must be int, found '0'"),
        ({"fold": True}, "fold must be int, found True"),
        ({"phase": 1}, "phase must be str, found 1"),
        ({"case_id": 7}, "case_id must be str, found 7"),
        ({"image": None}, "image must be str, found None"),
        ({"label": 3}, "label must be str, found 3"),
    ],
)
def test_a_manifest_with_a_value_of_another_kind_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "dataset.json"
    manifest(tmp_path).write(path)
    stored = json.loads(path.read_text(encoding="utf-8"))
    (stored if "labels" in change else stored["training"][0]).update(change)
    path.write_text(json.dumps(stored))
    with pytest.raises(UsageError, match=message):
        Manifest.read(path)


@pytest.mark.parametrize("value", [0, 256, 1.0])
def test_a_structure_must_have_a_value_that_a_label_map_can_hold(tmp_path: Path, value: float) -> None:
    with pytest.raises(UsageError, match=rf"toy: structures have the values 1 to 255, found LV {value}"):
        manifest(tmp_path, structures={"RV": 1, "LV": value})


def test_a_folder_in_place_of_the_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json" / "dataset.json").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"dataset\.json cannot be read \(Is a directory\)"):
        Manifest.read(tmp_path)
