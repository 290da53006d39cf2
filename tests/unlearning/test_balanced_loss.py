"""Balanced loss against a loop over samples and classes."""

import pytest
import torch
from torch.nn import functional as F

from uumamba.unlearning import per_sample_balanced_cross_entropy


@pytest.mark.parametrize("shape", [(), (7,), (5, 6), (3, 4, 5)])
@pytest.mark.parametrize("ignored", [False, True])
def test_balanced_loss_is_the_mean_over_classes_of_their_voxels(shape: tuple[int, ...], ignored: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, *shape, generator=generator, dtype=torch.float64, requires_grad=True)
    label = torch.randint(0, 3, (6, *shape), generator=generator)
    if ignored and shape:
        label.flatten(1)[:, :2] = -100
    expected = []
    for index in range(6):
        by_voxel = F.cross_entropy(logits[index : index + 1], label[index : index + 1], reduction="none")[0]
        present = [value for value in range(4) if (label[index] == value).any()]
        expected.append(torch.stack([by_voxel[label[index] == value].mean() for value in present]).mean())
    found = per_sample_balanced_cross_entropy(logits, label)
    torch.testing.assert_close(found, torch.stack(expected))
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), logits, retain_graph=True),
        torch.autograd.grad(torch.stack(expected).sum(), logits),
    )


def test_an_absent_class_does_not_count() -> None:
    logits = torch.zeros(1, 5, 8)
    torch.testing.assert_close(
        per_sample_balanced_cross_entropy(logits, torch.zeros(1, 8, dtype=torch.long)), torch.tensor([5.0]).log()
    )
