"""Distances to a retrained network, from hand-computed tables and scipy."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import nn

from uumamba.unlearning import mean_accuracy, prediction_distance, quality_gaps, weight_distance


class Table(nn.Module):
    """Network that returns stored logits."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.logits


def test_the_divergence_is_that_of_scipy_and_the_disagreement_the_share_of_other_classes() -> None:
    logits = torch.randn(2, 6, 5).double() * 3
    found = prediction_distance(
        Table(logits[0]), Table(logits[1]), [(torch.zeros(6), torch.zeros(6, dtype=torch.long))]
    )
    p, q = logits.softmax(2)
    expected = [jensenshannon(p[i], q[i], base=2) ** 2 for i in range(6)]
    assert found.divergence == pytest.approx(sum(expected) / 6)
    assert found.disagreement == pytest.approx((p.argmax(1) != q.argmax(1)).double().mean().item())
    assert found.samples == 6


def test_samples_weigh_equally_and_ignored_positions_do_not_count() -> None:
    first = torch.tensor([[[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]] * 2)  # two sequences of class 0
    second = first.clone()
    second[0, :, 0] = second[0, :, 0].flip(0)  # one of two valid positions of the first
    second[0, :, 2:] = second[0, :, 2:].flip(0)  # ignored
    label = torch.tensor([[0, 0, -100, -100], [0, 0, 0, 0]])
    batch = [(torch.zeros(2), label)]
    found = prediction_distance(Table(first), Table(second), batch)
    assert found.disagreement == (1 / 2 + 0) / 2
    p = torch.tensor([1.0, 0.0]).softmax(0)
    assert found.divergence == pytest.approx((jensenshannon(p, p.flip(0), base=2) ** 2 / 2 + 0) / 2)
    assert mean_accuracy(Table(second), batch) == (1 / 2 + 1) / 2


def test_equal_networks_have_no_distance_and_modes_are_restored() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))
    batches = [(torch.randn(8, 2), torch.randint(0, 3, (8,)))]
    found = prediction_distance(net, deepcopy(net), batches)
    assert (found.disagreement, weight_distance(net, deepcopy(net))) == (0, 0)
    assert found.divergence == pytest.approx(0, abs=1e-12)
    assert net[1].training


def test_certain_and_opposite_predictions_have_a_divergence_of_one_bit() -> None:
    logits = torch.tensor([[2000.0, -2000.0]])
    found = prediction_distance(Table(logits), Table(-logits), [(torch.zeros(1), torch.tensor([0]))])
    assert (found.divergence, found.disagreement) == (1, 1)


def test_the_weight_distance_is_relative_to_the_retrained_network() -> None:
    net, other = nn.Linear(2, 1), nn.Linear(2, 1)
    for each, value in ((net, 3.0), (other, 2.0)):
        for param in each.parameters():
            nn.init.constant_(param, value)
    assert weight_distance(net, other) == pytest.approx(1 / 2)
    assert weight_distance(other, net) == pytest.approx(1 / 3)
    assert weight_distance(net.requires_grad_(False), other) == pytest.approx(1 / 2)


def test_the_gap_is_the_difference_of_qualities() -> None:
    good, bad = (Table(sign * torch.eye(2)) for sign in (1, -1))
    batch = [(torch.zeros(2), torch.tensor([0, 1]))]
    gaps = quality_gaps(bad, good, {"forget": batch, "retain": batch[:1]}, mean_accuracy)
    assert list(gaps) == ["forget", "retain"]
    assert (gaps["forget"].unlearned, gaps["forget"].retrained, gaps["forget"].gap) == (0, 1, -1)


def test_networks_that_do_not_fit_are_refused(refused: Callable) -> None:
    batch = [(torch.zeros(1), torch.tensor([0]))]
    with refused("retrained", "logits of shape (1, 3)"):
        prediction_distance(Table(torch.zeros(1, 2)), Table(torch.zeros(1, 3)), batch)
    with refused("retrained", "another weight"):
        weight_distance(nn.Linear(1, 2), nn.Linear(1, 3))
    with refused("retrained", "another bias"):
        weight_distance(nn.Linear(1, 2), nn.Linear(1, 2, bias=False))
    for measure in (lambda net: mean_accuracy(net, []), lambda net: prediction_distance(net, net, [])):
        with refused("batches", "no batch"):
            measure(nn.Identity())
