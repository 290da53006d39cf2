"""Patches: keyed draws, foreground, borders and voxels."""

import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from uumamba.data.augment import Augment, nnunet_transforms
from uumamba.data.dataset import OpenCases, PatchDataset, batches
from uumamba.data.prepared import PreparedFolder
from uumamba.data.sampling import Sampling
from uumamba.inference.plane_image import list_neighbours

Prepare = Callable[..., PreparedFolder]
SHAPES = {"a_frame01": (5, 20, 24), "a_frame12": (6, 18, 30), "b_frame01": (3, 40, 22)}


def position_code(shape: tuple[int, ...]) -> np.ndarray:
    """Make an image with the channels z, y and x."""
    return np.stack(np.meshgrid(*(np.arange(1, size + 1) for size in shape), indexing="ij")).astype(np.float16)


@pytest.fixture(scope="module")
def folder(prepare: Prepare, tmp_path_factory: pytest.TempPathFactory) -> PreparedFolder:
    """Three cases of position codes; class 2 is a single voxel."""
    cases = {}
    for case_id, shape in SHAPES.items():
        label = np.zeros(shape, dtype=np.uint8)
        label[1, 4:9, 4:9] = 1
        label[2, 15, 3] = 2
        cases[case_id] = (position_code(shape), label)
    return prepare(tmp_path_factory.mktemp("prepared"), cases)


def make_dataset(folder: PreparedFolder, **options: Any) -> PatchDataset:
    defaults = {"patch_size": (12, 10), "batch_size": 4, "batches_per_epoch": 25, "seed": 3}
    return PatchDataset(folder, list(SHAPES), **(defaults | options))


@pytest.mark.parametrize("patch_size", [(12, 10), (3, 12, 10), (8, 50, 50)])
@pytest.mark.parametrize("margin", [1.0, 1.3])
def test_image_and_label_are_the_same_voxels_of_the_named_case(
    folder: PreparedFolder, patch_size: tuple[int, ...], margin: float
) -> None:
    dataset = make_dataset(folder, patch_size=patch_size, margin=margin)
    for index in range(40):
        sample = dataset[0, index]
        window = tuple(int(np.ceil(size * margin)) for size in patch_size)
        assert (sample["image"].shape, sample["image"].dtype) == ((3, *window), torch.float32)
        assert (sample["label"].shape, sample["label"].dtype) == ((1, *window), torch.int64)
        assert sample["domain"] == f"centre-{sample['case_id'][0]}"
        stored = folder.case(sample["case_id"]).label
        z, y, x = (sample["image"] - 1).long()
        # Outside the case the position channels have the smallest value of the window; inside, each voxel is unique.
        label = torch.from_numpy(stored.astype(np.int64))[z, y, x]
        outside = sample["label"][0] != label
        smallest = (sample["image"] == sample["image"].flatten(1).amin(1).reshape(3, *(1,) * len(window))).all(0)
        assert (sample["label"][0][outside] == 0).all()
        assert smallest[outside].all()


def assert_same(sample: dict[str, Any], other: dict[str, Any]) -> None:
    assert sample.keys() == other.keys()
    for key, value in sample.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key


def test_an_item_depends_only_on_its_key(folder: PreparedFolder) -> None:
    dataset, again = make_dataset(folder), pickle.loads(pickle.dumps(make_dataset(folder)))
    forwards = [dataset[2, index] for index in range(8)]
    torch.rand(7)
    for index in reversed(range(8)):
        assert_same(again[2, index], forwards[index])
    sources = dataset, make_dataset(folder, seed=4)
    assert len({source[epoch, index]["seed"] for source in sources for epoch in range(3) for index in range(20)}) == 120
    assert any(not torch.equal(dataset[0, i]["label"], dataset[1, i]["label"]) for i in range(20))


@pytest.mark.parametrize("patch_size", [(12, 10), (3, 12, 10)])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling("chance", "of_data_set", {2: 2.0}, content_fraction=0.4)])
def test_two_workers_read_the_same_bytes_as_no_worker(
    folder: PreparedFolder, patch_size: tuple[int, ...], sampling: Sampling
) -> None:
    dataset = make_dataset(folder, patch_size=patch_size, batches_per_epoch=5, margin=1.2, sampling=sampling)
    augment = Augment(nnunet_transforms(patch_size=patch_size, mirror_axes=(0, 1), bias_field_probability=0.5))
    alone, shared = list(batches(dataset, 3)), list(batches(dataset, 3, workers=2))
    assert len(alone) == 5
    for one, other in zip(alone, shared, strict=True):
        assert_same(one, other)
        assert_same(augment(one), augment(other))


@pytest.mark.parametrize(("batch_size", "fraction", "forced"), [(4, 0.5, 2), (2, 0.33, 1), (3, 0.0, 0), (5, 1.0, 5)])
def test_the_last_share_of_each_batch_holds_foreground(
    folder: PreparedFolder, batch_size: int, fraction: float, forced: int
) -> None:
    dataset = make_dataset(folder, patch_size=(2, 2), batch_size=batch_size, foreground_fraction=fraction)
    seen = np.array([bool(dataset[0, index]["label"].any()) for index in range(len(dataset))]).reshape(-1, batch_size)
    assert seen[:, batch_size - forced :].all()
    assert forced == batch_size or not seen[:, : batch_size - forced].all()


def test_a_margin_contains_the_same_patch_in_its_middle(folder: PreparedFolder) -> None:
    narrow, wide = make_dataset(folder, patch_size=(2, 6, 7)), make_dataset(folder, patch_size=(2, 6, 7), margin=1.5)
    for index in range(30):
        inner = wide[0, index]["label"][:, 0:2, 1:7, 2:9]  # windows of 3, 9 and 11 for patches of 2, 6 and 7
        assert torch.equal(narrow[0, index]["label"], inner)


def test_only_the_window_of_a_large_case_is_read(prepare: Prepare, tmp_path: Path) -> None:
    shape = (60, 256, 256)
    label = np.zeros(shape, dtype=np.uint8)
    label[30, 250, 250] = 1
    source = prepare(tmp_path, {"large": (np.zeros((1, *shape), dtype=np.float16), label)})
    dataset = PatchDataset(source, ["large"], patch_size=(8, 64, 64), batch_size=1, batches_per_epoch=1)
    dataset[0, 0]
    tracemalloc.start()
    dataset[0, 0]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    voxels = 8 * 64 * 64
    assert peak < 2 * voxels * (2 + 4 + 1 + 8)  # float16, float32, uint8 and int64; the case has 8 MB


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x01", None])
def test_a_case_without_foreground_gives_a_random_patch_and_a_damaged_case_is_named(
    prepare: Prepare, tmp_path: Path, damage: bytes | None, refused: Any
) -> None:
    source = prepare(tmp_path, {"bad": (np.ones((1, 4, 9, 9)), np.zeros((4, 9, 9), dtype=np.uint8))})
    options = {"patch_size": (4, 4), "batch_size": 1, "batches_per_epoch": 1, "foreground_fraction": 1.0}
    assert PatchDataset(source, ["bad"], **options)[0, 0]["image"].shape == (1, 4, 4)
    file = tmp_path / "cases" / "bad" / "image.npy"
    file.write_bytes(file.read_bytes()[:-100] if damage is None else damage)
    with refused(str(file), case_id="bad"):
        PatchDataset(source, ["bad"], **options)[0, 0]
    np.save(file, np.ones((1, 4, 9, 9), np.float16))
    np.save(file.with_name("locations.npy"), np.zeros(3))  # a complete file without rows
    with refused("image", case_id="bad"):
        PatchDataset(source, ["bad"], **options)[0, 0]


@pytest.mark.parametrize(
    ("wrong", "key", "got"),
    [
        ({"case_ids": []}, "case_ids", "no cases"),
        ({"case_ids": ["nobody"]}, "case_id", "nobody"),
        ({"patch_size": (4,)}, "patch_size", (4,)),
        ({"batch_size": 0}, "batch_size", 0),
        ({"batches_per_epoch": 0}, "batches_per_epoch", 0),
        ({"foreground_fraction": 1.2}, "foreground_fraction", 1.2),
        ({"margin": 0.9}, "margin", 0.9),
    ],
)
def test_an_invalid_argument_is_refused(
    folder: PreparedFolder, refused: Any, wrong: dict[str, Any], key: str, got: Any
) -> None:
    options = {"case_ids": ["a_frame01"], "patch_size": (4, 4), "batch_size": 1, "batches_per_epoch": 1} | wrong
    with refused(key, got=got):
        PatchDataset(folder, options.pop("case_ids"), **options)


def test_a_case_is_opened_once_and_the_least_recently_used_is_closed(
    folder: PreparedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uumamba.data.dataset.MOST_OPEN", 2)
    cases = OpenCases(folder)
    kept = [cases.open(name) for name in ("a_frame01", "a_frame12", "a_frame01")]
    assert kept[0] is kept[2]
    cases.open("b_frame01")  # closes a_frame12
    assert cases.open("a_frame01") is kept[0]
    assert cases.open("a_frame12") is not kept[1]
    copied = pickle.loads(pickle.dumps(cases))  # as for workers
    assert copied.open("a_frame12") is not cases.open("a_frame12")


def test_neighbouring_slices_are_channels_as_in_prediction(folder: PreparedFolder) -> None:
    plain, stacked = (make_dataset(folder, neighbour_slices=count) for count in (0, 2))
    edges = set()
    for index in range(len(plain)):
        one, other = plain[0, index], stacked[0, index]
        assert torch.equal(one["label"], other["label"])
        assert torch.equal(one["image"], other["image"][2::5])
        image = np.asarray(folder.case(one["case_id"]).image, np.float32)
        volume = np.stack(list(list_neighbours(np.moveaxis(image, 1, 0), 2)), axis=1)
        windows = np.lib.stride_tricks.sliding_window_view(volume, (12, 10), axis=(2, 3))
        found = other["image"].numpy()[:, None, None, None]
        places = np.argwhere((windows == found).all(axis=(0, 4, 5)))
        assert len(places) == 1, "codes of positions are unique"
        edges.add(int(places[0][0]))
    assert 0 in edges, "a slice at the edge was drawn"
