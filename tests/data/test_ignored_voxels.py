"""Ignored voxels, from reading a label to the centres of patches."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uumamba.data.case import Case
from uumamba.data.dataset import PatchDataset, case_views
from uumamba.data.foreground import sample_foreground
from uumamba.data.geometry import find_geometry
from uumamba.data.label_scheme import IGNORED
from uumamba.data.locations import LOCATIONS_PER_CLASS, sample_locations
from uumamba.data.prepared import PreparedFolder, verify_prepared, write_prepared
from uumamba.data.preprocess import PreprocessRecipe, preprocess
from uumamba.data.sampling import Sampling
from uumamba.data.scan import decode_classes, encode_classes, read_label
from uumamba.data.source_key import source_key

RECIPE = PreprocessRecipe((None, None, None))
SHAPE = (6, 40, 40)
ANNOTATED = (slice(2, 4), slice(10, 20), slice(24, 34))
"""Box of SHAPE whose voxels are not ignored."""


@pytest.mark.parametrize(
    ("structures", "ignored"), [({"a": 1, "b": 2}, 3), ({"a": 2, "b": 500}, 1), ({"a": 1, "b": 3}, 255), ({"a": 1}, 2)]
)
def test_ignored_voxels_are_read_become_class_255_and_are_written_back(
    write_scan: Callable[..., Path], structures: dict[str, int], ignored: int, refused: Any
) -> None:
    values = np.array([0, *structures.values(), ignored], dtype=np.uint16)
    path = write_scan("a.nii.gz", values[np.random.default_rng(0).integers(0, len(values), (7, 6, 5))])
    stored = read_label(path, structures=structures, ignore_value=ignored).array
    classes = encode_classes(stored, structures, ignore_value=ignored)
    assert classes.dtype == np.uint8
    assert np.array_equal(classes == IGNORED, stored == ignored)
    for number, value in enumerate(sorted(structures.values()), start=1):
        assert np.array_equal(classes == number, stored == value)
    assert np.array_equal(decode_classes(classes, structures, ignore_value=ignored), stored)
    with refused("label", got=str(ignored), case_id="a"):
        read_label(path, structures=structures, case_id="a")


def test_ignored_voxels_do_not_enlarge_the_crop_and_are_resampled() -> None:
    scan, label = np.zeros((20, 24, 10)), np.full((20, 24, 10), IGNORED, np.uint8)
    scan[4:12, 6:18, 2:8] = np.random.default_rng(0).random((8, 12, 6)) + 1
    label[4:8, 6:18, 2:8], label[8:10, 6:18, 2:8] = 1, 0
    recipe = PreprocessRecipe((None, 0.5, 0.5))
    _, whole, _ = preprocess(scan, spacing_mm=(1, 1, 1), recipe=recipe, label=label)
    _, cropped, _ = preprocess(scan, spacing_mm=(1, 1, 1), recipe=recipe, label=label, ignore_label=IGNORED)
    assert whole is not None
    assert cropped is not None
    assert (whole.shape, cropped.shape) == ((10, 48, 40), (6, 24, 16))
    # Along the last axis: 4 voxels of class 1, 2 of background and 2 ignored ones, each twice as many as before.
    assert np.bincount(cropped.ravel(), minlength=256)[[0, 1, 255]].tolist() == [4 * 144, 8 * 144, 4 * 144]


def test_ignored_voxels_are_no_foreground_of_ct_statistics() -> None:
    label = np.random.default_rng(0).integers(0, 3, (10, 12, 14)).astype(np.uint8)
    scan = np.choose(label, [-800, 300, 1500]).astype(np.int16)
    assert {*sample_foreground(scan, label, case_id="a")} == {300, 1500}
    assert {*sample_foreground(scan, label, case_id="a", ignore_value=2)} == {300}


def test_annotated_background_is_located_only_in_data_sets_with_ignored_voxels() -> None:
    label = np.zeros(SHAPE, np.uint8)
    label[0], label[5, 0] = 1, IGNORED
    before, now = (sample_locations(label, case_id="a", ignore_label=ignored) for ignored in (None, IGNORED))
    assert {*before[:, 0]} == {1, IGNORED}
    assert np.unique(now[:, 0], return_counts=True)[1].tolist() == [LOCATIONS_PER_CLASS, 40 * 40]
    assert np.array_equal(now[now[:, 0] == 1], before[before[:, 0] == 1])
    assert (label[tuple(now[:, 1:].T)] == now[:, 0]).all()


@pytest.fixture
def sparse(prepare: Callable[..., PreparedFolder], tmp_path: Path) -> PreparedFolder:
    """Case "a" is annotated in a box with 3 voxels of class 1, case "b" nowhere."""
    image, nowhere = np.random.default_rng(0).random((1, *SHAPE)), np.full(SHAPE, IGNORED, np.uint8)
    label = nowhere.copy()
    label[ANNOTATED] = 0
    label[2, 12, 25:28] = 1
    folder = prepare(tmp_path, {"a": (image, label), "b": (image, nowhere)})
    folder.manifest = replace(folder.manifest, ignore_value=9)
    folder.manifest.write(tmp_path / "dataset.json")
    for name, each in (("a", label), ("b", nowhere)):
        geometry = find_geometry(SHAPE[::-1], spacing_mm=(1.5, 1.5, 10.0))
        write_prepared(tmp_path, name, image=image, label=each, geometry=geometry, key="k", ignore_label=IGNORED)
    return folder


@pytest.mark.parametrize("patch_size", [(1, 1), (1, 1, 1)])
def test_patches_are_centred_on_annotated_voxels_and_no_class_is_ignored(
    sparse: PreparedFolder, patch_size: tuple[int, ...]
) -> None:
    options: dict[str, Any] = {"patch_size": patch_size, "batch_size": 4, "batches_per_epoch": 100}
    for sampling in (Sampling(), Sampling(classes="of_data_set"), Sampling(class_weights={2: 0.5})):
        forced = PatchDataset(sparse, ["a"], foreground_fraction=1.0, sampling=sampling, **options)
        assert {int(forced[0, index]["label"]) for index in range(40)} == {1}
    at_random = PatchDataset(sparse, ["a"], foreground_fraction=0.0, **options)
    labels = [int(at_random[0, index]["label"]) for index in range(400)]
    assert {*labels} <= {0, 1}
    assert sum(labels) < 40, "3 of 200 annotated voxels are of class 1"
    unlabelled = PatchDataset(sparse, ["b"], **options)
    assert int(unlabelled[0, 0]["label"]) == IGNORED
    (views,) = case_views(sparse, ["a"], patch_size=patch_size, views=3)
    assert views["label"].unique().tolist() == [1]


def test_verifying_accepts_ignored_voxels_of_data_sets_that_have_them(sparse: PreparedFolder, refused: Any) -> None:
    sparse.verify(["a", "b"])
    with refused(str(sparse.path / "cases/a/label.npy"), got="the label 255", case_id="a"):
        verify_prepared(sparse.path, "a", structures={"one": 1, "two": 2})


def test_keys_of_data_sets_without_ignored_voxels_are_those_of_earlier_versions(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"voxels")
    case = Case("c", "c", "", path)
    settings = {"format": 1, "recipe": RECIPE.to_json(), "structures": {"a": 1}}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(hashlib.sha256(hashlib.sha256(b"voxels").digest()).digest())  # a path may be a folder of files
    plain = source_key(case, recipe=RECIPE, structures={"a": 1})
    assert plain == digest.hexdigest()
    assert plain != source_key(case, recipe=RECIPE, structures={"a": 1}, ignore_value=2)
