"""UDIM's claims are measured on splits that keep apart, with controls that differ from it in nothing else."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from benchmarks.claims import udim, unseen_digits
from benchmarks.claims.run_log import RunLog

pytest.importorskip("sklearn")


def test_training_and_test_images_are_all_digits_once_and_drawn_by_the_seed() -> None:
    one, other = unseen_digits.split_of(0), unseen_digits.split_of(1)
    assert (len(one.labels), len(one.test_labels)) == (1078, 719)
    every = torch.cat([one.images, one.test_images])
    again = torch.cat([other.images, other.test_images])
    assert torch.equal(every.sum((1, 2, 3)).sort().values, again.sum((1, 2, 3)).sort().values)
    assert not torch.equal(one.images, other.images)


def test_corruptions_are_repeatable_keep_the_shape_and_change_every_image() -> None:
    images = unseen_digits.split_of(0).test_images
    first, second = (list(unseen_digits.corrupted(images, 0)) for _ in range(2))
    assert len(first) == 9
    for (_, corrupted), (_, again) in zip(first, second, strict=True):
        assert torch.equal(corrupted, again)
        assert corrupted.shape == images.shape
        assert corrupted.dtype == images.dtype
        assert (corrupted != images).flatten(1).any(1).all()


def test_an_attack_stays_in_its_ball_and_raises_the_loss() -> None:
    split = unseen_digits.split_of(0)
    torch.manual_seed(0)
    net = unseen_digits.digit_perceptron()
    moved = udim.attacked(net, split.test_images, split.test_labels) - split.test_images
    lengths = moved.flatten(1).norm(dim=1)
    assert lengths.max() < 0.5 + 1e-5
    before, after = (F.cross_entropy(net(split.test_images + by), split.test_labels) for by in (0 * moved, moved))
    assert after > before + 0.03


def test_every_claim_names_what_is_measured_of_methods_that_are_run(tmp_path: Path) -> None:
    found = udim.perform(udim.run_of(udim.OURS, 12, 0))
    assert found == udim.perform(udim.run_of(udim.OURS, 12, 0))
    assert {claim.metric for claim, _ in udim.CLAIMS} <= found.keys()
    assert udim.SEEDS >= 10
    log = RunLog(tmp_path)
    steps = udim.EPOCHS // 4 * udim.STEPS_AN_EPOCH
    for name in udim.METHODS:
        for seed in range(2):
            value = {udim.SAM_ALONE: 1.0, udim.CONTROL: 0.6}.get(name, 0.1) + 0.001 * seed
            log._add(udim.run_of(name, steps, seed), dict.fromkeys(found, value))
    rows, _, _ = udim.table(tmp_path, quick=True, workers=1)
    assert len(rows) == len(udim.CLAIMS)
    assert [row["control_value"] for row in rows[:3]] == [0.2001, 0.30025, 1.0005]
    assert [row["verdict"] for row in rows[:3]] == ["holds", "holds", "does not hold here"]
