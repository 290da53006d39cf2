"""Losses per sample of classes, tokens and voxels."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from uumamba.unlearning import MeanLoss, collect_losses, per_sample_cross_entropy, predict_batch


@pytest.mark.parametrize("positions", [(), (7,), (4, 5), (2, 3, 4)])
def test_a_samples_loss_is_the_cross_entropy_of_that_sample_alone(positions: tuple[int, ...]) -> None:
    logits, label = torch.randn(3, 4, *positions), torch.randint(0, 4, (3, *positions))
    expected = [F.cross_entropy(logits[i : i + 1], label[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(per_sample_cross_entropy(logits, label), torch.stack(expected))


def test_a_label_with_a_channel_axis_and_deep_supervision_give_the_same_loss() -> None:
    logits, label = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    found = per_sample_cross_entropy([logits, torch.randn(2, 3, 2, 2)], label[:, None])
    assert torch.equal(found, per_sample_cross_entropy(logits, label))


def test_ignored_tokens_do_not_count_and_sequences_weigh_equally() -> None:
    logits, label = torch.randn(2, 5, 6), torch.randint(0, 5, (2, 6))
    label[0, 2:] = -100
    losses = per_sample_cross_entropy(logits, label)
    torch.testing.assert_close(losses[0], F.cross_entropy(logits[:1, :, :2], label[:1, :2]))
    mean = MeanLoss()(nn.Identity(), (logits, label))
    torch.testing.assert_close(mean, losses.mean())
    assert not torch.isclose(mean, F.cross_entropy(logits, label))  # which counts the longer sequence more


def test_half_precision_logits_are_computed_in_float32() -> None:
    logits = torch.randn(2, 3).half()
    assert per_sample_cross_entropy(logits, torch.tensor([0, 1])).dtype == torch.float32


def test_wrong_labels_are_refused(refused: Callable) -> None:
    with refused("label", "class 4"):
        per_sample_cross_entropy(torch.zeros(2, 4), torch.tensor([0, 4]))
    with refused("label", "class -1"):
        per_sample_cross_entropy(torch.zeros(2, 4), torch.tensor([0, -1]))
    with refused("label", "no valid position in sample 1"):
        per_sample_cross_entropy(torch.zeros(2, 4, 3), torch.tensor([[0, 1, 2], [-100, -100, -100]]))
    with refused("label") as error:  # classes on the last axis
        per_sample_cross_entropy(torch.zeros(2, 6, 4), torch.zeros(2, 6, dtype=torch.long))
    assert "logits.mT" in str(error.value)
    with refused("label"):
        per_sample_cross_entropy(torch.zeros(2, 4), torch.zeros(2))


def test_an_unknown_batch_names_its_keys(refused: Callable) -> None:
    with refused("batch", "the keys tokens, mask"):
        predict_batch(nn.Identity(), {"tokens": 1, "mask": 2})


def test_a_loss_that_is_no_vector_is_refused(refused: Callable) -> None:
    batch = (torch.zeros(2, 2), torch.tensor([0, 1]))
    with refused("per_sample_loss", "a tensor of shape ()"):
        MeanLoss(F.cross_entropy)(nn.Identity(), batch)
    with refused("per_sample_loss", "a tensor of shape (0,)"):
        MeanLoss()(nn.Identity(), (torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)))


def test_losses_are_collected_in_evaluation_mode_and_the_modes_restored(refused: Callable) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.9))
    batches = [(torch.randn(2, 2), torch.tensor([0, 1])), (torch.randn(1, 2), torch.tensor([2]))]
    found = collect_losses(net, batches)
    assert net[1].training
    assert not found.requires_grad
    expected = torch.cat([F.cross_entropy(net[0](image), label, reduction="none") for image, label in batches])
    torch.testing.assert_close(found, expected.detach())
    with refused("batches", "no batch"):
        collect_losses(net, [])
