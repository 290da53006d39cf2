"""The relearning attack: as strong as its sweep, without a change of the network."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD, Adam

from uumamba.optim import SAM
from uumamba.unlearning import MeanLoss, RelearningResult, RelearningRow, relearning_attack

SGD_1 = partial(SGD, lr=1.0)


class Bowl(nn.Module):
    """One weight w with the loss (w - 1)^2; SGD multiplies w - 1 by 1 - 2 rate."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))


def bowl_loss(net: Any, batch: Any) -> Tensor:
    return (net.w - 1) ** 2


def bowl_quality(net: Any) -> float:
    return -abs(net.w.item() - 1)


attack_bowl = partial(relearning_attack, Bowl(), [0], bowl_quality, optimizer=SGD_1, loss=bowl_loss)


def test_each_row_is_fine_tuning_at_one_rate_for_one_budget() -> None:
    result = attack_bowl(budgets=[3, 1], rates=[0.25, 0.1])
    expected = [RelearningRow(0, 0.0, -1.0)]
    expected += [RelearningRow(steps, rate, -((1 - 2 * rate) ** steps)) for rate in (0.1, 0.25) for steps in (1, 3)]
    assert [(row.steps, row.rate) for row in result.rows] == [(row.steps, row.rate) for row in expected]
    assert [row.quality for row in result.rows] == pytest.approx([row.quality for row in expected], abs=1e-6)


def test_the_strongest_attack_is_the_best_of_all_rates_within_the_budget() -> None:
    result = attack_bowl(budgets=[1, 4], rates=[0.1, 0.4, 2.0])  # the last one diverges
    assert result.strongest(0).quality == -1
    assert (result.strongest(1).rate, result.strongest(4).rate) == (0.4, 0.4)
    assert not result.needs_other_rates(4)
    low = attack_bowl(budgets=[1], rates=[0.01, 0.02])
    assert low.needs_other_rates(1)
    worse = RelearningResult((RelearningRow(0, 0.0, 0.1), RelearningRow(1, 0.1, 0.9), RelearningRow(2, 0.1, 0.3)))
    assert worse.strongest(2).steps == 1  # the attacker stops in time


def test_a_rate_that_diverges_has_nan_and_never_counts(refused: Callable) -> None:
    result = attack_bowl(budgets=[1, 100], rates=[0.1, 1e30])
    diverged = [row for row in result.rows if row.rate == 1e30]
    assert math.isnan(diverged[1].quality)
    assert result.strongest(100).rate == 0.1
    with refused("budget", -1):
        result.strongest(-1)


def test_the_network_and_later_draws_do_not_change() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    batches = [(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))]
    torch.set_rng_state(state)
    relearning_attack(net, batches, lambda net: 0.0, optimizer=SGD_1, budgets=[2], rates=[0.1, 0.2])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(param.grad is None for param in net.parameters())


def test_every_rate_sees_the_same_batches_and_the_same_dropout() -> None:
    seen: dict[float, list[Any]] = {}
    net, current = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), []

    def loss(net: nn.Module, batch: Any) -> Tensor:
        current.append((batch[2], net[1](torch.ones(64)).sum().item()))
        return MeanLoss()(net, batch[:2])

    def optimizer(params: Any) -> Any:
        current.clear()
        seen[len(seen)] = current
        return SGD(params, lr=1.0)

    batches = [(torch.ones(1, 2), torch.tensor([0]), index) for index in range(3)]
    runs = []
    for rate in ([0.1], [0.2], [0.1, 0.2]):
        torch.rand(1)  # earlier draws make no difference
        relearning_attack(net, iter(batches), lambda net: 0.0, optimizer=optimizer, budgets=[5], rates=rate, loss=loss)
        runs.append([*current])
    assert runs[0] == runs[1] == runs[2]
    assert sorted(index for index, _ in runs[0][:3]) == [0, 1, 2]
    assert len({dropped for _, dropped in runs[0]}) > 1


@pytest.mark.parametrize("optimizer", [partial(Adam, lr=1.0), lambda params: SAM(params, SGD_1)], ids=["Adam", "SAM"])
def test_forgotten_samples_are_learned_again_by_any_optimizer(optimizer: Callable) -> None:
    net = nn.Linear(4, 4)
    image, label = torch.eye(4), torch.arange(4)
    quality = lambda net: -MeanLoss()(net, (image, label)).item()  # noqa: E731
    result = relearning_attack(
        net, [(image, label)], quality, optimizer=optimizer, budgets=[1, 20], rates=[0.01, 0.1, 1.0]
    )
    assert result.strongest(0).quality < result.strongest(1).quality < result.strongest(20).quality
    assert result.strongest(20).quality > -0.3


def test_frozen_parameters_stay_frozen_in_the_attack() -> None:
    net = nn.Linear(2, 2)
    net.weight.requires_grad_(False)
    seen = []
    relearning_attack(
        net,
        [(torch.eye(2), torch.tensor([0, 1]))],
        lambda net: seen.append(parameters_to_vector(net.parameters()).tolist()) or 0.0,
        optimizer=SGD_1,
        budgets=[1],
        rates=[0.1],
    )
    assert seen[0][:4] == seen[1][:4]
    assert seen[0][4:] != seen[1][4:]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"budgets": []}, "budgets"),
        ({"budgets": [0]}, "budgets"),
        ({"rates": []}, "rates"),
        ({"rates": [0.0]}, "rates"),
        ({"batches": []}, "batches"),
        ({"net": nn.Linear(1, 1).requires_grad_(False)}, "net"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], key: str, refused: Callable) -> None:
    defaults = {"net": Bowl(), "batches": [0], "quality": bowl_quality, "optimizer": SGD_1, "loss": bowl_loss}
    with refused(key):
        relearning_attack(**defaults | {"budgets": [1], "rates": [0.1], "quality": lambda net: 0.0} | options)
