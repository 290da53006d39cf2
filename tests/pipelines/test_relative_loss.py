"""Tests of the loss of patches relative to unseen ones."""

import numpy as np
import pytest
import torch
from torch import nn

from uumamba.pipelines.forgetting.relative_loss import measure_unseen

LABEL = torch.zeros(2, 1, 4, 4, dtype=torch.long)
LABEL[:, 0, 0, 0] = 1


def logits_of(structure: list[float]) -> torch.Tensor:
    """Return logits of three classes whose class 1 voxel is worse by sample, and whose background is good."""
    logits = torch.zeros(2, 3, 4, 4)
    logits[:, 0] = 3.0
    logits[:, 1, 0, 0] = torch.tensor(structure)
    return logits


def by_hand(logits: np.ndarray, label: np.ndarray) -> list[float]:
    """Return the mean cross entropy of classes 0 and 1 of one sample in float64."""
    rows = np.moveaxis(logits.astype(np.float64), 0, -1).reshape(-1, 3)
    loss = np.log(np.exp(rows).sum(1)) - rows[np.arange(len(rows)), label.ravel()]
    return [float(loss[label.ravel() == value].mean()) for value in (0, 1)]


def test_each_class_of_a_patch_is_relative_to_the_median_of_unseen_ones_and_counts_up_to_it() -> None:
    unseen = [{"image": logits_of([3.0, 1.0]), "label": LABEL}, {"image": logits_of([5.0, 0.0]), "label": LABEL}]
    relative = measure_unseen(nn.Identity(), unseen, ignore_label=None).loss
    losses = [by_hand(image.numpy(), LABEL[0].numpy()) for batch in unseen for image in batch["image"]]
    medians = [sorted(each)[1] for each in zip(*losses, strict=True)]  # torch's median of four is the lower one
    assert relative.medians[:2] == pytest.approx(medians)
    assert relative.medians[2] == float("inf"), "no unseen patch has class 2"
    given = logits_of([4.5, -4.0])
    given[:, 0, 1:] = torch.tensor([6.0, 0.0])[:, None, None]  # sample 0 is sure of the background, 1 of nothing
    expected = [np.minimum(np.divide(by_hand(image.numpy(), LABEL[0].numpy()), medians), 1).mean() for image in given]
    assert relative(given, LABEL).tolist() == pytest.approx(expected)
    assert expected[0] < 0.9
    assert expected[1] == 1


def test_a_class_above_its_median_is_not_pushed_while_another_is_below() -> None:
    unseen = [{"image": logits_of([3.0, 3.0]), "label": LABEL}]
    relative = measure_unseen(nn.Identity(), unseen, ignore_label=None).loss
    logits = logits_of([-4.0, -4.0])
    logits[:, 0, 1:] = 8.0
    logits.requires_grad_()
    relative(logits, LABEL).sum().backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad[:, :, 0, 0], torch.zeros(2, 3)), "the structure's loss is above that of unseen ones"
    assert (logits.grad[:, 0, 1:] < 0).all()


def test_a_class_that_no_unseen_patch_has_does_not_count() -> None:
    relative = measure_unseen(nn.Identity(), [{"image": logits_of([3.0, 3.0]), "label": LABEL}], ignore_label=None).loss
    label = LABEL.clone()
    label[0] = 2
    label[1, 0, 0, 0] = 2
    logits = logits_of([3.0, 3.0])
    assert relative(logits, label)[0] == 1
    assert relative(logits, label)[1] == pytest.approx(
        by_hand(logits[1].numpy(), LABEL[1].numpy())[0] / relative.medians[0]
    )


def test_ignored_voxels_count_neither_for_the_medians_nor_for_a_patch() -> None:
    ignored = LABEL.clone()
    ignored[:, 0, 1:] = 255
    clean, dirty = logits_of([3.0, 1.0]), logits_of([3.0, 1.0])
    dirty[:, :, 1:] = 50.0 * torch.randn(2, 3, 3, 4, generator=torch.Generator().manual_seed(0))
    found = [
        measure_unseen(nn.Identity(), [{"image": each, "label": ignored}], ignore_label=255) for each in (clean, dirty)
    ]
    assert found[0] == found[1]
    for relative in (found[0].loss, found[0].voxel_loss):
        assert torch.equal(relative(clean, ignored), relative(dirty, ignored))


def test_the_loss_of_voxels_is_relative_to_the_median_patch_and_counts_up_to_it() -> None:
    unseen = [{"image": logits_of([3.0, 1.0]), "label": LABEL}, {"image": logits_of([5.0, 0.0]), "label": LABEL}]
    relative = measure_unseen(nn.Identity(), unseen, ignore_label=None).voxel_loss

    def loss(image: torch.Tensor) -> float:
        background, structure = by_hand(image.numpy(), LABEL[0].numpy())
        return (15 * background + structure) / 16

    assert relative.median == pytest.approx(sorted(loss(image) for batch in unseen for image in batch["image"])[1])
    given = logits_of([4.5, -4.0])
    given[:, 0, 1:] = torch.tensor([6.0, 0.0])[:, None, None]
    expected = [min(loss(image) / relative.median, 1) for image in given]
    assert relative(given, LABEL).tolist() == pytest.approx(expected, rel=1e-5)
    assert expected[0] < 0.9
    assert expected[1] == 1
