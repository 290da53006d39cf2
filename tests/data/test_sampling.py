"""Centres of patches beyond the defaults: thin structures, rare classes, air."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from uumamba.data.dataset import PatchDataset
from uumamba.data.prepared import PreparedFolder
from uumamba.data.sampling import Sampling

SHAPE = (6, 24, 30)
CASES = ("a", "b", "c")


@pytest.fixture(scope="module")
def folder(prepare: Any, tmp_path_factory: pytest.TempPathFactory) -> PreparedFolder:
    """Three cases of noise with clipped air on the right; all hold class 1, only ``c`` class 2, as a line."""
    cases = {}
    for seed, name in enumerate(CASES):
        image = np.random.default_rng(seed).uniform(0, 1, SHAPE)
        image[:, :, 15:] = -1
        label = np.zeros(SHAPE, dtype=np.uint8)
        label[1:3, 4:9, 4:9] = 1
        if name == "c":
            label[4, 12, 2:10] = 2
        cases[name] = (image[None], label)
    return prepare(tmp_path_factory.mktemp("prepared"), cases)


def make(folder: PreparedFolder, sampling: Sampling | None = None, **options: Any) -> PatchDataset:
    defaults = {"patch_size": (1, 1, 1), "batch_size": 4, "batches_per_epoch": 250, "seed": 3}
    return PatchDataset(folder, CASES, sampling=sampling, **(defaults | options))


def counts(dataset: PatchDataset) -> Counter[int]:
    return Counter(int(dataset[0, index]["label"]) for index in range(len(dataset)))


def within(count: int, share: float, of: int) -> bool:
    """Within four standard deviations of a binomial count."""
    return abs(count / of - share) < 4 * (share * (1 - share) / of) ** 0.5


@pytest.mark.parametrize(
    ("sampling", "share"),
    [
        (Sampling(), 1 / 6),  # one case of three, one class of two
        (Sampling(classes="of_data_set"), 1 / 2),
        (Sampling(class_weights={2: 3.0}), 1 / 3 * 3 / 4),
        (Sampling(classes="of_data_set", class_weights={2: 3.0}), 3 / 4),
    ],
)
def test_a_class_comes_as_often_as_its_case_and_weight_say(
    folder: PreparedFolder, sampling: Sampling, share: float
) -> None:
    assert within(counts(make(folder, sampling, foreground_fraction=1.0))[2], share, 1000)


def test_a_class_of_weight_zero_is_never_drawn_and_a_case_of_such_gives_a_random_patch(folder: PreparedFolder) -> None:
    dataset = make(folder, Sampling(class_weights={1: 0.0}), foreground_fraction=1.0)
    samples = [dataset[0, index] for index in range(300)]
    assert {int(sample["label"]) for sample in samples if sample["case_id"] == "c"} == {2}
    assert {int(sample["label"]) for sample in samples if sample["case_id"] != "c"} == {0, 1}


def test_a_batch_of_one_sees_foreground_by_chance_and_not_by_share(folder: PreparedFolder) -> None:
    # 0.33 of one sample is none; a random voxel of these cases is foreground at most once in 74 times
    options = {"batch_size": 1, "batches_per_epoch": 1000, "foreground_fraction": 0.33}
    shared, chanced = (counts(make(folder, Sampling(forced=forced), **options)) for forced in ("share", "chance"))
    assert shared[0] > 950
    assert within(chanced[1] + chanced[2], 0.33 + 0.67 * 53 / 4320, 1000)


def test_air_is_drawn_again_and_a_forced_patch_is_not(folder: PreparedFolder) -> None:
    options = {"patch_size": (2, 6, 6), "foreground_fraction": 0.5}
    plain, picky = make(folder, **options), make(folder, Sampling(content_fraction=0.3), **options)

    def share_of_air(dataset: PatchDataset, index: int) -> float:
        return float((dataset[0, index]["image"] == -1).float().mean())

    free, forced = [i for i in range(400) if i % 4 < 2], [i for i in range(400) if i % 4 >= 2]
    assert max(share_of_air(plain, index) for index in free) == 1
    # a window whose smallest value is no air has all its voxels but one above it
    assert max(share_of_air(picky, index) for index in free) <= 0.7
    for index in forced:
        assert torch.equal(plain[0, index]["image"], picky[0, index]["image"])


def test_the_search_for_content_ends(folder: PreparedFolder) -> None:
    dataset = make(folder, Sampling(content_fraction=0.999999), patch_size=(6, 24, 30), foreground_fraction=0.0)
    assert dataset[0, 0]["image"].shape == (1, 6, 24, 30)


@pytest.mark.parametrize(
    ("key", "got"),
    [
        ("forced", "always"),
        ("classes", "rare"),
        ("class_weights", {1: -1.0}),
        ("class_weights", {1: float("inf")}),
        ("content_fraction", 1.0),
    ],
)
def test_wrong_choices_are_refused(refused: Any, key: str, got: Any) -> None:
    with refused(key, got=got):
        Sampling(**{key: got})
