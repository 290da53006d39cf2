"""Stored cases are complete or absent, and belong to their key."""

import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uumamba.data.case import Case, Manifest
from uumamba.data.geometry import Geometry
from uumamba.data.prepared import (
    PreparedFolder,
    is_up_to_date,
    open_prepared,
    verify_prepared,
    write_prepared,
)
from uumamba.data.preprocess import PreprocessRecipe, preprocess
from uumamba.data.source_key import source_key
from uumamba.runtime.errors import CaseError

RECIPE = PreprocessRecipe((None, None, None))
STRUCTURES = {"RV": 1, "MYO": 2, "LV": 3}
Stored = tuple[np.ndarray, np.ndarray, Geometry]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    for name in ("image", "label"):
        (tmp_path / name).write_bytes(name.encode())
    return Case("p1", "p", "here", tmp_path / "image", tmp_path / "label")


@pytest.fixture
def stored(tmp_path: Path, case: Case) -> Stored:
    generator = np.random.default_rng(0)
    label = generator.integers(0, 4, (12, 10, 4)).astype(np.uint8)
    image, prepared, geometry = preprocess(
        generator.random((12, 10, 4)), spacing_mm=(1.5, 1.5, 8), recipe=RECIPE, label=label
    )
    assert prepared is not None
    key = source_key(case, recipe=RECIPE, structures=STRUCTURES)
    write_prepared(tmp_path, "p1", image=image, label=prepared, geometry=geometry, key=key)
    return image, prepared, geometry


@pytest.fixture
def up_to_date(tmp_path: Path, case: Case) -> Callable[..., bool]:
    """``up_to_date(recipe=..., structures=..., **fields_of_the_case)``."""

    def check(recipe: PreprocessRecipe = RECIPE, structures: dict[str, int] = STRUCTURES, **fields: Any) -> bool:
        return is_up_to_date(tmp_path, replace(case, **fields), recipe=recipe, structures=structures)

    return check


def test_a_case_is_opened_as_written_with_read_only_maps(tmp_path: Path, stored: Stored) -> None:
    image, label, geometry = stored
    case = open_prepared(tmp_path, "p1")
    assert isinstance(case.image, np.memmap)
    assert isinstance(case.label, np.memmap)
    assert case.image.dtype == np.float16
    assert np.array_equal(case.image, image.astype(np.float16))
    assert np.array_equal(case.label, label)
    assert (case.case_id, case.geometry) == ("p1", geometry)
    assert case.locations.dtype == np.int32
    assert len(case.locations) == np.count_nonzero(label)
    with pytest.raises(ValueError, match="read-only"):
        case.label[0, 0, 0] = 1


def test_slabs_are_written_as_the_file_of_numpy(tmp_path: Path, stored: Stored) -> None:
    image, label, geometry = stored
    slabs = [image[0, :1], image[0, 1:]]
    write_prepared(tmp_path, "p2", image=iter(slabs), label=iter(label), geometry=geometry, key="k")
    for name, array in (("image", image.astype(np.float16)), ("label", label)):
        np.save(tmp_path / "whole.npy", array)
        assert (tmp_path / "cases" / "p2" / f"{name}.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


@pytest.mark.parametrize(
    ("change", "key", "got"),
    [
        (lambda image, label: (image, label[:3]), "label.npy", "360 voxels"),
        (lambda image, label: (image, label[:0]), "label.npy", "0 voxels"),
        (lambda image, label: (image * 0 + 1e6, label), "image", 1e6),
    ],
)
def test_a_failed_write_leaves_no_case(
    tmp_path: Path, stored: Stored, refused: Any, change: Any, key: str, got: Any
) -> None:
    image, label = change(*stored[:2])
    with refused(key, got=got):
        write_prepared(tmp_path, "p1", image=image, label=label, geometry=stored[2], key="k")
    assert not (tmp_path / "cases" / "p1" / "case.json").exists()


class Canary:
    """Object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def with_json(content: bytes, **changes: Any) -> bytes:
    return json.dumps(json.loads(content) | changes).encode()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "pickle": lambda content: pickle.dumps(Canary(Path("created"))),
}
JSON_DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "another format": lambda content: with_json(content, format=0),
    "no geometry": lambda content: b'{"format": 1}',
    "a number": lambda content: with_json(content, geometry=3),
    "unknown keys": lambda content: with_json(content, geometry=json.loads(content)["geometry"] | {"a": 1}),
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, damage) for name in ("case.json", "image.npy", "label.npy", "locations.npy") for damage in DAMAGES),
        *((name, None) for name in ("case.json", "image.npy", "label.npy", "locations.npy")),
        *(("case.json", damage) for damage in JSON_DAMAGES),
    ],
)
def test_an_incomplete_case_is_refused_and_not_up_to_date(
    tmp_path: Path,
    stored: Stored,
    up_to_date: Callable[..., bool],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    damage: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "cases" / "p1" / name
    assert up_to_date()
    content = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes((DAMAGES | JSON_DAMAGES)[damage](content))
    assert not up_to_date()
    with pytest.raises(CaseError) as error:
        open_prepared(tmp_path, "p1")
    assert error.value.case_id == "p1"
    assert error.value.key.startswith(str(path))
    assert "uumamba prepare" in error.value.fix
    assert not Path("created").exists()


def test_pickled_arrays_and_arrays_of_another_shape_are_refused(tmp_path: Path, stored: Stored, refused: Any) -> None:
    folder = tmp_path / "cases" / "p1"
    pickled = np.empty((1,), dtype=object)
    pickled[0] = Canary(tmp_path / "created")
    np.save(folder / "locations.npy", pickled, allow_pickle=True)
    with refused(str(folder / "locations.npy"), case_id="p1"):
        open_prepared(tmp_path, "p1")
    assert not (tmp_path / "created").exists()
    np.save(folder / "label.npy", np.zeros((1, 2, 3), np.uint8))
    with refused("shape", got="(1, 4, 10, 12) and (1, 2, 3)", case_id="p1"):
        open_prepared(tmp_path, "p1")


def test_a_case_is_up_to_date_for_its_files_recipe_and_structures(
    tmp_path: Path, case: Case, stored: Stored, up_to_date: Callable[..., bool], refused: Any
) -> None:
    assert up_to_date(fold=3, structures={"LV": 3, "MYO": 2, "RV": 1})
    assert not up_to_date(recipe=replace(RECIPE, clip_percentiles=(1.0, 99.0)))
    assert not up_to_date(structures={"RV": 1, "LV": 2})
    assert not up_to_date(image=case.label, label=case.image)
    assert not up_to_date(case_id="p2", image=tmp_path / "nowhere"), "a source is read only if the case is stored"
    with refused("file", case_id="p1"):
        up_to_date(image=tmp_path / "nowhere")
    path = tmp_path / "cases" / "p1" / "case.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "key"}))
    assert not up_to_date()
    (tmp_path / "label").write_bytes(b"Label")
    assert not up_to_date()


# The folder.


@pytest.fixture
def finished(tmp_path: Path, case: Case, stored: Stored) -> Manifest:
    manifest = Manifest("toy", "MRI", {"RV": 1}, (case,))
    manifest.write(tmp_path / "dataset.json")
    (tmp_path / "recipe.json").write_text(json.dumps(RECIPE.to_json()))
    return manifest


def test_a_complete_folder_has_manifest_recipe_and_cases_also_if_unpickled(
    tmp_path: Path, finished: Manifest, stored: Stored, refused: Any
) -> None:
    folder = pickle.loads(pickle.dumps(PreparedFolder(str(tmp_path))))
    assert (folder.path, folder.manifest, folder.recipe) == (tmp_path, finished, RECIPE)
    assert np.array_equal(folder.case("p1").label, stored[1])
    with refused("case_id", got="p2"):
        folder.case("p2")


def test_the_hash_of_a_folder_depends_on_cases_folds_and_keys(tmp_path: Path, case: Case, finished: Manifest) -> None:
    first = PreparedFolder(tmp_path).sha256()
    assert PreparedFolder(tmp_path).sha256() == first
    replace(finished, cases=(replace(case, fold=2),)).write(tmp_path / "dataset.json")
    assert PreparedFolder(tmp_path).sha256() != first
    finished.write(tmp_path / "dataset.json")
    path = tmp_path / "cases" / "p1" / "case.json"
    path.write_bytes(with_json(path.read_bytes(), key="other"))
    assert PreparedFolder(tmp_path).sha256() != first


@pytest.mark.parametrize("missing", ["dataset.json", "recipe.json"])
def test_an_incomplete_folder_is_refused(tmp_path: Path, finished: Manifest, missing: str, refused: Any) -> None:
    (tmp_path / missing).unlink()
    with refused("path", got=f"{tmp_path}, a folder"):
        PreparedFolder(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"spacing_mm": None}, {"unknown": 1}, {"normalisation": "minmax"}, {"clip_percentiles": [9, 1]}]
)
def test_a_damaged_recipe_is_refused(tmp_path: Path, finished: Manifest, changes: dict[str, Any], refused: Any) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(RECIPE.to_json() | changes))
    with pytest.raises(ValueError) as error:  # noqa: PT011  # key and value below
        PreparedFolder(tmp_path)
    assert error.value.key.startswith(str(path))  # type: ignore[attr-defined]  # a UsageError


def change(path: Path, change_array: Callable[[np.ndarray], None]) -> None:
    array = np.load(path)
    change_array(array)
    np.save(path, array)


def forget_hashes(folder: Path) -> None:
    """Make ``case.json`` that of an older version."""
    path = folder / "cases" / "p1" / "case.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["sha256"]
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "change_array"),
    [
        ("label", lambda array: array.__setitem__((0, 0, 0), 200)),
        ("image", lambda array: array.__setitem__((0, 0, 0, 0), np.nan)),
        ("locations", lambda array: array.__setitem__((0, 0), 2)),
        ("image", lambda array: np.negative(array, out=array)),
    ],
)
@pytest.mark.usefixtures("stored")
def test_a_changed_array_is_named_and_the_case_is_prepared_again(
    name: str, change_array: Callable[[np.ndarray], None], tmp_path: Path, up_to_date: Callable[..., bool]
) -> None:
    verify_prepared(tmp_path, "p1", structures=STRUCTURES)
    assert up_to_date()
    change(tmp_path / "cases" / "p1" / f"{name}.npy", change_array)
    with pytest.raises(CaseError, match=rf"p1: .*{name}\.npy: got other bytes .*uumamba prepare"):
        verify_prepared(tmp_path, "p1", structures=STRUCTURES)
    assert not up_to_date()


@pytest.mark.parametrize(
    ("name", "change_array", "complaint"),
    [
        ("label", lambda array: array.__setitem__((0, 0, 0), 200), "got the label 200, expected 0 to 3"),
        ("image", lambda array: array.__setitem__((0, 0, 0, 0), np.inf), "got NaN or infinity"),
    ],
)
@pytest.mark.usefixtures("stored")
def test_an_older_case_without_hashes_is_used_unless_its_values_are_impossible(
    name: str, change_array: Callable[[np.ndarray], None], complaint: str, tmp_path: Path, up_to_date: Any
) -> None:
    forget_hashes(tmp_path)
    verify_prepared(tmp_path, "p1", structures=STRUCTURES)
    assert up_to_date()
    change(tmp_path / "cases" / "p1" / f"{name}.npy", change_array)
    with pytest.raises(CaseError, match=rf"{name}\.npy: {complaint}.*Fix: run `uumamba prepare` again"):
        verify_prepared(tmp_path, "p1", structures=STRUCTURES)
    assert not up_to_date()


def test_the_stored_hashes_are_those_of_the_files(tmp_path: Path, stored: Stored) -> None:
    source = tmp_path / "cases" / "p1"
    hashes = json.loads((source / "case.json").read_text(encoding="utf-8"))["sha256"]
    files = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in source.glob("*.npy")}
    assert hashes == files
    assert np.array_equal(np.load(source / "label.npy"), stored[1])
