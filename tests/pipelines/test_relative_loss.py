"""Tests of the loss of patches relative to unseen ones."""

import numpy as np
import pytest
import torch
from torch import nn

from uumamba.pipelines.forgetting.relative_loss import measure_unseen

LABEL = torch.zeros(2, 1, 4, 4, dtype=torch.long)
LABEL[:, 0, 0, 0] = 1


def logits_of(balanced: list[float]) -> torch.Tensor:
    """Return logits whose class 1 voxel is worse by sample, and whose background is good."""
    logits = torch.zeros(2, 2, 4, 4)
    logits[:, 0] = 3.0
    logits[:, 1, 0, 0] = torch.tensor(balanced)
    return logits


def by_hand(logits: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """Return the class-balanced and the plain cross entropy of one sample in float64."""
    rows = np.moveaxis(logits.astype(np.float64), 0, -1).reshape(-1, 2)
    loss = np.log(np.exp(rows).sum(1)) - rows[np.arange(len(rows)), label.ravel()]
    return float(np.mean([loss[label.ravel() == value].mean() for value in (0, 1)])), float(loss.mean())


def test_a_patch_has_the_lower_of_its_two_losses_relative_to_the_medians_of_unseen_ones() -> None:
    unseen = [{"image": logits_of([3.0, 1.0]), "label": LABEL}, {"image": logits_of([5.0, 0.0]), "label": LABEL}]
    relative = measure_unseen(nn.Identity(), unseen, ignore_label=None)
    losses = [by_hand(image.numpy(), LABEL[0].numpy()) for batch in unseen for image in batch["image"]]
    medians = [sorted(each)[1] for each in zip(*losses, strict=True)]  # torch's median of four is the lower one
    assert (relative.balanced, relative.voxel) == pytest.approx(medians)
    given = logits_of([2.0, -4.0])
    given[0, 0, 1:] = 0.0  # whose background is unsure, so that the loss of class means is lower, relatively
    expected = [
        min(mine / median for mine, median in zip(by_hand(image.numpy(), LABEL[0].numpy()), medians, strict=True))
        for image in given
    ]
    assert relative(given, LABEL).tolist() == pytest.approx(expected)
    balanced, voxel = (
        np.array(each) for each in zip(*(by_hand(i.numpy(), LABEL[0].numpy()) for i in given), strict=True)
    )
    assert list(balanced / medians[0] < voxel / medians[1]) == [True, False]


def test_ignored_voxels_count_neither_for_the_medians_nor_for_a_patch() -> None:
    ignored = LABEL.clone()
    ignored[:, 0, 1:] = 255
    clean, dirty = logits_of([3.0, 1.0]), logits_of([3.0, 1.0])
    dirty[:, :, 1:] = 50.0 * torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    found = [
        measure_unseen(nn.Identity(), [{"image": each, "label": ignored}], ignore_label=255) for each in (clean, dirty)
    ]
    assert found[0] == found[1]
    assert torch.equal(found[0](clean, ignored), found[0](dirty, ignored))
