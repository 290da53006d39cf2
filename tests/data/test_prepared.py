"""A stored case is whole or not there, and is made from the bytes and the recipe that its key says."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uumamba.data.case import Case, Manifest
from uumamba.data.geometry import Geometry
from uumamba.data.locations import sample_locations
from uumamba.data.prepared import (
    PreparedFolder,
    is_prepared,
    open_prepared,
    source_key,
    write_prepared,
)
from uumamba.data.preprocess import PreprocessRecipe, preprocess
from uumamba.runtime.errors import CaseError, UsageError

RECIPE = PreprocessRecipe((None, None, None))
Stored = tuple[np.ndarray, np.ndarray, Geometry]


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    """One case, ``p1``, written into ``tmp_path``."""
    generator = np.random.default_rng(0)
    label = generator.integers(0, 4, (12, 10, 4)).astype(np.uint8)
    image, prepared, geometry = preprocess(
        generator.random((12, 10, 4)), spacing_mm=(1.5, 1.5, 8), recipe=RECIPE, label=label
    )
    assert prepared is not None
    write_prepared(tmp_path, "p1", image=image, label=prepared, geometry=geometry, key="k")
    return image, prepared, geometry


def test_a_case_comes_back_as_it_was_written(tmp_path: Path, stored: Stored) -> None:
    image, label, geometry = stored
    case = open_prepared(tmp_path, "p1")
    assert case.image.dtype == np.float16
    assert np.array_equal(case.image, image.astype(np.float16))
    assert np.array_equal(case.label, label)
    assert case.geometry == geometry
    assert case.case_id == "p1"


def test_planes_written_a_few_at_a_time_are_the_file_that_numpy_writes(tmp_path: Path, stored: Stored) -> None:
    image, label, geometry = stored
    slabs = [image[0, :1], image[0, 1:]]
    write_prepared(tmp_path, "p2", image=iter(slabs), label=iter(label), geometry=geometry, key="k")
    for name, array in (("image", image.astype(np.float16)), ("label", label)):
        np.save(tmp_path / "whole.npy", array)
        assert (tmp_path / "cases" / "p2" / f"{name}.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


@pytest.mark.parametrize("planes", [slice(0, 3), slice(0, 0)])
def test_too_few_planes_are_no_case(tmp_path: Path, stored: Stored, planes: slice) -> None:
    image, label, geometry = stored
    with pytest.raises(ValueError, match=r"label.npy of the shape \(4, 10, 12\) has 480 voxels, got"):
        write_prepared(tmp_path, "p2", image=image, label=label[planes], geometry=geometry, key="k")
    assert not is_prepared(tmp_path, "p2", key="k")


def test_arrays_are_mapped_and_cannot_be_written_to(tmp_path: Path, stored: Stored) -> None:
    case = open_prepared(tmp_path, "p1")
    assert isinstance(case.image, np.memmap)
    assert isinstance(case.label, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        case.label[0, 0, 0] = 1


def test_locations_name_voxels_of_their_class(tmp_path: Path, stored: Stored) -> None:
    _, label, _ = stored
    locations = open_prepared(tmp_path, "p1").locations
    assert locations.dtype == np.int32
    assert len(locations) == np.count_nonzero(label)
    assert np.array_equal(label[tuple(locations[:, 1:].T)], locations[:, 0])


def test_locations_are_at_most_2000_a_class_and_depend_on_the_case_alone() -> None:
    label = np.zeros((3, 40, 60), dtype=np.uint8)
    label[:2], label[2, :10] = 1, 3
    first = sample_locations(label, case_id="a")
    assert np.bincount(first[:, 0]).tolist() == [0, 2000, 0, 600]
    assert len(np.unique(first, axis=0)) == 2600
    assert np.array_equal(first, sample_locations(label, case_id="a"))
    assert not np.array_equal(first, sample_locations(label, case_id="b"))


def test_an_empty_label_has_no_locations() -> None:
    assert sample_locations(np.zeros((2, 3, 4), np.uint8), case_id="a").shape == (0, 4)


def test_a_case_is_prepared_only_for_its_own_key(tmp_path: Path, stored: Stored) -> None:
    assert is_prepared(tmp_path, "p1", key="k")
    assert not is_prepared(tmp_path, "p1", key="other")
    assert not is_prepared(tmp_path, "p2", key="k")


@pytest.mark.parametrize("name", ["case.json", "image.npy", "label.npy", "locations.npy"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_a_case_that_is_not_whole_is_not_there(tmp_path: Path, stored: Stored, name: str, damage: str) -> None:
    path = tmp_path / "cases" / "p1" / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    assert not is_prepared(tmp_path, "p1", key="k")
    with pytest.raises(CaseError, match=r"p1: it.*; run `uumamba prepare` again"):
        open_prepared(tmp_path, "p1")


def test_a_case_of_another_format_is_refused(tmp_path: Path, stored: Stored) -> None:
    path = tmp_path / "cases" / "p1" / "case.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"format": 0}))
    with pytest.raises(CaseError, match="a format other than 1"):
        open_prepared(tmp_path, "p1")


@pytest.mark.parametrize(
    "text", ['{"format": 1}', '{"format": 1, "geometry": 3}', '{"format": 1, "geometry": {"a": 1}}']
)
def test_a_case_json_that_lacks_its_geometry_is_damaged(tmp_path: Path, stored: Stored, text: str) -> None:
    (tmp_path / "cases" / "p1" / "case.json").write_text(text)
    assert not is_prepared(tmp_path, "p1", key="k")
    with pytest.raises(CaseError, match=r"p1: its prepared case.json is damaged; run `uumamba prepare` again"):
        open_prepared(tmp_path, "p1")


def test_a_case_json_without_its_key_is_made_anew(tmp_path: Path, stored: Stored) -> None:
    path = tmp_path / "cases" / "p1" / "case.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["key"]
    path.write_text(json.dumps(content))
    assert not is_prepared(tmp_path, "p1", key="k")


def test_arrays_of_another_case_are_refused(tmp_path: Path, stored: Stored) -> None:
    np.save(tmp_path / "cases" / "p1" / "label.npy", np.zeros((1, 2, 3), np.uint8))
    with pytest.raises(CaseError, match=r"shapes \(1, 4, 10, 12\) and \(1, 2, 3\), expected \(4, 10, 12\)"):
        open_prepared(tmp_path, "p1")


class Canary:
    """Unpickling this leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_in_place_of_an_array_is_not_opened(tmp_path: Path, stored: Stored) -> None:
    (tmp_path / "cases" / "p1" / "label.npy").write_bytes(pickle.dumps(Canary(tmp_path / "sung")))
    with pytest.raises(CaseError, match=r"label.npy is missing or damaged"):
        open_prepared(tmp_path, "p1")
    planted = np.empty((1,), dtype=object)
    planted[0] = Canary(tmp_path / "sung")
    np.save(tmp_path / "cases" / "p1" / "locations.npy", planted, allow_pickle=True)
    assert not is_prepared(tmp_path, "p1", key="k")
    assert not (tmp_path / "sung").exists()


def test_an_image_beyond_float16_is_refused(tmp_path: Path, stored: Stored) -> None:
    image, label, geometry = stored
    with pytest.raises(CaseError, match="exceeds float16"):
        write_prepared(tmp_path, "p2", image=image * 1e6, label=label, geometry=geometry, key="k")


def test_while_a_case_is_written_anew_it_is_not_there(tmp_path: Path, stored: Stored) -> None:
    image, label, geometry = stored
    (tmp_path / "cases" / "p1" / "label.npy").unlink()
    (tmp_path / "cases" / "p1" / "label.npy").mkdir()  # so that writing stops half-way
    with pytest.raises(UsageError, match=r"label.npy is a folder"):
        write_prepared(tmp_path, "p1", image=image, label=label, geometry=geometry, key="new")
    assert not (tmp_path / "cases" / "p1" / "case.json").exists()


# Keys.


def test_the_key_depends_on_bytes_recipe_and_structures_and_on_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"abc")
    (tmp_path / "label").write_bytes(b"def")
    case = Case("p1", "p", "here", tmp_path / "image", tmp_path / "label")
    structures = {"RV": 1, "LV": 3}

    def key(case: Case = case, recipe: PreprocessRecipe = RECIPE, structures: dict[str, int] = structures) -> str:
        return source_key(case, recipe=recipe, structures=structures)

    first = key()
    assert key(replace(case, fold=3), structures={"LV": 3, "RV": 1}) == first
    assert key(recipe=replace(RECIPE, clip_percentiles=(1.0, 99.0))) != first
    assert key(structures={"RV": 1, "LV": 2}) != first
    assert key(replace(case, image=case.label or case.image, label=case.image)) != first
    (tmp_path / "label").write_bytes(b"dEf")
    assert key() != first


def test_a_source_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=r"p1: .*nowhere.nii cannot be read \(No such file"):
        source_key(Case("p1", "p", "here", tmp_path / "nowhere.nii"), recipe=RECIPE, structures={})


# The folder.


def finish(folder: Path) -> Manifest:
    case = Case("p1", "p", "here", folder / "image", folder / "label")
    manifest = Manifest("toy", "MRI", {"RV": 1}, (case,))
    manifest.write(folder / "dataset.json")
    (folder / "recipe.json").write_text(json.dumps(RECIPE.to_json()))
    return manifest


def test_a_finished_folder_gives_manifest_recipe_and_cases(tmp_path: Path, stored: Stored) -> None:
    manifest = finish(tmp_path)
    folder = PreparedFolder(tmp_path)
    assert folder.manifest == manifest
    assert folder.recipe == RECIPE
    assert np.array_equal(folder.case("p1").label, stored[1])
    with pytest.raises(UsageError, match="has no case p2"):
        folder.case("p2")


def test_a_folder_travels_to_a_worker_process(tmp_path: Path, stored: Stored) -> None:
    finish(tmp_path)
    folder = PreparedFolder(str(tmp_path))
    assert pickle.loads(pickle.dumps(folder)) == folder


@pytest.mark.parametrize("missing", ["dataset.json", "recipe.json"])
def test_an_unfinished_folder_is_refused(tmp_path: Path, stored: Stored, missing: str) -> None:
    finish(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(UsageError, match="holds no prepared cases; make them with `uumamba prepare`"):
        PreparedFolder(tmp_path)


def test_a_recipe_that_is_none_is_refused(tmp_path: Path, stored: Stored) -> None:
    finish(tmp_path)
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(UsageError, match=r"recipe.json is no preparation recipe"):
        PreparedFolder(tmp_path)
