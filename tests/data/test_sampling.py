"""Choice of patches: rare classes, class weights and air."""

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
    """Three cases with air and class 1; only ``c`` has class 2."""
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


def is_near(count: int, share: float, of: int) -> bool:
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
def test_the_rate_of_a_class_follows_cases_and_weights(
    folder: PreparedFolder, sampling: Sampling, share: float
) -> None:
    assert is_near(counts(make(folder, sampling, foreground_fraction=1.0))[2], share, 1000)


def test_a_class_of_weight_zero_is_never_drawn(
    folder: PreparedFolder,
) -> None:
    dataset = make(folder, Sampling(class_weights={1: 0.0}), foreground_fraction=1.0)
    samples = [dataset[0, index] for index in range(300)]
    assert {int(sample["label"]) for sample in samples if sample["case_id"] == "c"} == {2}
    assert {int(sample["label"]) for sample in samples if sample["case_id"] != "c"} == {0, 1}


def test_batches_of_one_need_the_choice_by_chance(folder: PreparedFolder) -> None:
    # round(0.33) is 0; a random voxel of these cases is foreground with a probability of at most 1 / 74.
    options = {"batch_size": 1, "batches_per_epoch": 1000, "foreground_fraction": 0.33}
    shared, chanced = (counts(make(folder, Sampling(forced=forced), **options)) for forced in ("share", "chance"))
    assert shared[0] > 950
    assert is_near(chanced[1] + chanced[2], 0.33 + 0.67 * 53 / 4320, 1000)


def test_a_random_patch_of_air_is_drawn_again_and_a_forced_one_is_not(folder: PreparedFolder) -> None:
    options = {"patch_size": (2, 6, 6), "foreground_fraction": 0.5}
    plain, picky = make(folder, **options), make(folder, Sampling(content_fraction=0.3), **options)

    def share_of_air(dataset: PatchDataset, index: int) -> float:
        return float((dataset[0, index]["image"] == -1).float().mean())

    free, forced = [i for i in range(400) if i % 4 < 2], [i for i in range(400) if i % 4 >= 2]
    assert max(share_of_air(plain, index) for index in free) == 1
    # In a window without air all voxels except one are above the smallest value.
    assert max(share_of_air(picky, index) for index in free) <= 0.7
    for index in forced:
        assert torch.equal(plain[0, index]["image"], picky[0, index]["image"])


def test_the_number_of_draws_for_content_is_limited(folder: PreparedFolder) -> None:
    dataset = make(folder, Sampling(content_fraction=0.999999), patch_size=(6, 24, 30), foreground_fraction=0.0)
    assert dataset[0, 0]["image"].shape == (1, 6, 24, 30)


@pytest.mark.parametrize(
    ("key", "got"),
    [
        ("forced", "always"),
        ("classes", "rare"),
        ("class_weights.1", -1.0),
        ("class_weights.1", float("inf")),
        ("content_fraction", 1.0),
    ],
)
def test_an_invalid_choice_is_refused(refused: Any, key: str, got: Any) -> None:
    with refused(key, got=got):
        name, _, value = key.partition(".")
        Sampling(**{name: {int(value): got} if value else got})
