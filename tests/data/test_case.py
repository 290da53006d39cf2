"""Manifest: unique cases, equal bytes, readable by MONAI, movable."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from uumamba.data.case import Case, Manifest

CASE_KEYS = ("case_id", "patient_id", "domain", "phase", "group")


def manifest(folder: Path, **changes: Any) -> Manifest:
    cases = tuple(
        Case(f"p{n}_ed", f"p{n}", "here", folder / f"p{n}.nii.gz", folder / f"p{n}_gt.nii.gz", n % 5, "ED", "NOR")
        for n in range(3)
    )
    return Manifest(**({"name": "toy", "modality": "MRI", "structures": {"RV": 1, "LV": 3}, "cases": cases} | changes))


def test_a_written_manifest_is_read_equal_also_from_a_moved_folder(tmp_path: Path) -> None:
    manifest(tmp_path / "one" / "raw", extra={"note": "kept"}).write(tmp_path / "one" / "dataset.json")
    shutil.move(tmp_path / "one", tmp_path / "two")
    assert Manifest.read(tmp_path / "two") == manifest(tmp_path / "two" / "raw", extra={"note": "kept"})


def test_equal_cases_give_equal_bytes_in_any_order(tmp_path: Path) -> None:
    made = manifest(tmp_path)
    made.write(tmp_path / "a.json")
    manifest(tmp_path, cases=made.cases[::-1]).write(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_channels_regions_ignored_voxels_and_colours_are_read_as_written(tmp_path: Path) -> None:
    made = manifest(
        tmp_path,
        modality=("T1", "FLAIR"),
        structures={"oedema": 1, "core": 2, "enhancing": 3},
        ignore_value=4,
        regions={"whole": (1, 2, 3), "core": (2, 3)},
        regions_class_order=(1, 2),
        colours={"whole": "#d62728"},
        cases=(Case("a", "a", "", (tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz"), tmp_path / "a.nii.gz"),),
    )
    made.write(tmp_path / "dataset.json")
    read = Manifest.read(tmp_path)
    assert read == made
    assert [*read.targets.items()] == [("whole", (1, 2, 3)), ("core", (2, 3))], "the order of outputs and of painting"
    assert read.cases[0].files == (*made.cases[0].images, made.cases[0].label)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"ignore_value": 3}, "ignore_value"),
        ({"ignore_value": 65536}, "labels.ignore_value"),
        ({"regions": {"whole": (1, 2)}, "regions_class_order": (1,)}, "regions.whole"),
        ({"regions": {"whole": ()}, "regions_class_order": (1,)}, "regions.whole"),
        ({"regions": {"whole": (1, 3)}}, "regions_class_order"),
        ({"regions_class_order": (1,)}, "regions_class_order"),
        ({"colours": {"LV": "red"}}, "colours.LV"),
        ({"colours": {"aorta": "#ff0000"}}, "colours.aorta"),
        ({"modality": ("T1", "T\n2")}, "modality"),
    ],
)
def test_regions_ignored_values_and_colours_of_no_structure_are_refused(
    tmp_path: Path, refused: Any, changes: dict[str, Any], key: str
) -> None:
    with refused(f"toy: {key}"):
        manifest(tmp_path, **changes)


def test_channels_out_of_order_are_refused(tmp_path: Path, refused: Any) -> None:
    path = tmp_path / "dataset.json"
    manifest(tmp_path, modality=("T1", "T2")).write(path)
    path.write_text(path.read_text(encoding="utf-8").replace('"1": "T2"', '"2": "T2"'))
    with refused("toy: modality", got="0, 2"):
        Manifest.read(path)


@pytest.mark.slow  # importing MONAI takes seconds
def test_monai_reads_the_manifest(tmp_path: Path) -> None:
    from monai.data import load_decathlon_datalist

    made = manifest(tmp_path)
    made.write(tmp_path / "dataset.json")
    listed = load_decathlon_datalist(tmp_path / "dataset.json", data_list_key="training")
    assert [(Path(entry["image"]), entry["case_id"]) for entry in listed] == [
        (case.image, case.case_id) for case in made.cases
    ]


def test_selection_separates_training_validation_and_test_cases(tmp_path: Path, refused: Any) -> None:
    test_case = Case("t", "t", "here", tmp_path / "t.nii.gz", split="test")
    manifest(tmp_path, cases=(*manifest(tmp_path).cases, test_case)).write(tmp_path / "dataset.json")
    read = Manifest.read(tmp_path)
    assert [case.case_id for case in read.select(fold=1)] == ["p1_ed"]
    assert [case.case_id for case in read.select(split="training", without_fold=1)] == ["p0_ed", "p2_ed"]
    assert read.select(split="test") == (test_case,)
    assert read.by_id("p1_ed").fold == 1
    with refused("case_id", got="p7_ed"):
        read.by_id("p7_ed")


@pytest.mark.parametrize(
    ("change", "key", "got"),
    [
        ({"cases": 2 * (Case("a", "p", "d", Path("i")),)}, "case_id", "a"),
        *(({"cases": (Case(name, "p", "d", Path("i")),)}, "case_id", name) for name in ("../up", "a/b", "", "..")),
        *(({"structures": {"LV": value}}, "labels.LV", value) for value in (0, 65536, 1.0)),
        ({"structures": {"LV": 3, "RV": 3}}, "labels", [3, 3]),
    ],
)
def test_duplicate_ids_and_invalid_label_values_are_refused(
    tmp_path: Path, refused: Any, change: dict[str, Any], key: str, got: Any
) -> None:
    with refused(f"toy: {key}", got=got):
        manifest(tmp_path, **change)


HIDDEN = {
    "newline": "\n",
    "carriage return": "\r",
    "tab": "\t",
    "escape": "\x1b[2J",
    "null": "\x00",
    "right-to-left override": "\u202e",
    "isolate": "\u2066",
    "direction mark": "\u200f",
    "zero width": "\u200b",
    "byte order mark": "\ufeff",
    "line separator": "\u2028",
}


@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN)
@pytest.mark.parametrize("key", ["case_id", "patient_id", "domain", "phase", "group", "labels", "name"])
def test_names_with_characters_that_are_not_shown_are_refused_and_escaped(
    tmp_path: Path, refused: Any, key: str, hidden: str
) -> None:
    name = f"a{hidden}b"
    change: dict[str, Any] = (
        {"cases": (replace(manifest(tmp_path).cases[0], **{key: name}),)} if key in CASE_KEYS else {}
    )
    change |= {"labels": {"structures": {name: 1}}, "name": {"name": name}}.get(key, {})
    with refused(key if key == "name" else f"toy: {key}", got=repr(name)) as error:
        manifest(tmp_path, **change)
    assert str(error.value).isprintable()
    assert error.value.fix.startswith("remove '\\")


@pytest.mark.parametrize("name", ["a b", "Größe", "患者1", "LV $x$", "=1+1", "-5", "LV; RV"])
def test_names_of_any_language_and_sign_are_valid(tmp_path: Path, name: str) -> None:
    case = replace(manifest(tmp_path).cases[0], case_id=name, patient_id=name, group=name)
    made = manifest(tmp_path, cases=(case,), structures={name: 1})
    made.write(tmp_path / "dataset.json")
    assert Manifest.read(tmp_path) == made


@pytest.mark.parametrize(
    ("change", "place", "got"),
    [
        ({"labels": {"0": "background", "a": "RV"}}, "labels.a.[key]", "a"),
        ({"labels": {"0": "background", "-1": "RV"}}, None, -1),
        ({"modality": "MRI"}, "modality", "MRI"),
        ({"training": 3}, "training", 3),
        ({"fold": "0"}, "training.0.fold", "0"),
        ({"fold": True}, "training.0.fold", True),
        ({"label": 3}, "training.0.label", 3),
    ],
)
def test_a_manifest_with_a_value_of_another_type_is_refused(
    tmp_path: Path, refused: Any, change: dict[str, Any], place: str | None, got: Any
) -> None:
    path = tmp_path / "dataset.json"
    manifest(tmp_path).write(path)
    stored = json.loads(path.read_text(encoding="utf-8"))
    (stored if change.keys() & stored.keys() else stored["training"][0]).update(change)
    path.write_text(json.dumps(stored))
    with refused("toy: labels.RV" if place is None else f"{path}: {place}", got=got):
        Manifest.read(path)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"[1]", "folder"])
def test_a_missing_or_foreign_file_is_refused(tmp_path: Path, refused: Any, content: Any) -> None:
    path = tmp_path / "dataset.json"
    if content == "folder":
        (path / "dataset.json").mkdir(parents=True)
    elif content is not None:
        path.write_bytes(content)
    with refused(str(path)) as error:
        Manifest.read(tmp_path)
    assert "uumamba prepare" in error.value.fix
