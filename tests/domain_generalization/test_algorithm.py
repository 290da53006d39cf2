from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD

from uumamba.domain_generalization import Algorithm, require_domains
from uumamba.optim import ASAM, SAGM, SAM, Plain, SharpnessAware

Minibatches = list[tuple[Tensor, Tensor]]


class SpreadOfRisks:
    """Variance of the loss over domains (risk extrapolation); needs two domains."""

    def __init__(self, net: nn.Module, *, weight: float = 1.0, warmup_steps: int = 0) -> None:
        self.net, self.weight = net, weight
        self.left = warmup_steps

    def at_weights(self, image: Tensor, label: Tensor, *, domains: Tensor) -> Callable[[], Tensor] | None:
        require_domains(len(domains.unique()), "the variance of risks")
        self.left -= 1
        if self.left >= 0:
            return None

        def spread() -> Tensor:
            losses = F.cross_entropy(self.net(image), label, reduction="none")
            return self.weight * torch.stack([losses[domains == each].mean() for each in domains.unique()]).var()

        return spread


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(3)
    parts = OrderedDict(featurizer=nn.Sequential(nn.Linear(4, 6), nn.Tanh()), classifier=nn.Linear(6, 3))
    return nn.Sequential(parts).to(dtype)


def minibatches(
    seed: int = 0, *, sizes: tuple[int, ...] = (5, 4, 3), dtype: torch.dtype = torch.float32
) -> Minibatches:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 4, generator=generator, dtype=dtype), torch.randint(3, (n,), generator=generator))
        for n in sizes
    ]


def weights(net: nn.Module) -> Tensor:
    return parameters_to_vector(net.parameters()).detach().clone()


def train(steps: int, optimizer: Callable[..., SharpnessAware], make_method: Callable[..., object] | None) -> Tensor:
    """Return the weights of a new network after some updates."""
    net = network()
    method = None if make_method is None else make_method(net)
    algorithm = Algorithm(net, optimizer(net.parameters(), partial(SGD, lr=0.1, momentum=0.9)), method=method)
    for step in range(steps):
        algorithm.update(minibatches(step))
    return weights(net)


@pytest.mark.parametrize("optimizer", [Plain, SAM, ASAM, SAGM])
def test_an_update_without_penalty_is_the_optimizers_step_on_all_domains_concatenated(
    optimizer: type[SharpnessAware],
) -> None:
    net = network()
    alone = optimizer(net.parameters(), partial(SGD, lr=0.1, momentum=0.9))
    for step in range(3):
        x, y = (torch.cat(parts) for parts in zip(*minibatches(step), strict=True))
        alone.step(lambda x=x, y=y: F.cross_entropy(net(x), y))
    assert torch.equal(train(3, optimizer, None), weights(net))
    assert torch.equal(train(3, optimizer, partial(SpreadOfRisks, warmup_steps=3)), weights(net))


@pytest.mark.parametrize("optimizer", [Plain, SAM, ASAM, SAGM])
def test_an_update_adds_the_gradient_of_the_penalty_at_the_original_weights(
    optimizer: type[SharpnessAware],
) -> None:
    net = network(torch.float64)
    data = minibatches(dtype=torch.float64)
    losses = torch.stack([F.cross_entropy(net(x), y) for x, y in data])
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(7 * losses.var(), list(net.parameters()))])

    changes = {}
    for weight in (None, 7.0):
        net = network(torch.float64)
        before = weights(net)
        method = None if weight is None else SpreadOfRisks(net, weight=weight)
        Algorithm(net, optimizer(net.parameters(), partial(SGD, lr=0.1)), method=method).update(data)
        changes[weight] = weights(net) - before
    torch.testing.assert_close(changes[7.0] - changes[None], -0.1 * gradient, rtol=1e-9, atol=1e-12)


def test_a_method_gets_the_minibatch_number_of_each_sample_once_per_step() -> None:
    net, data, method = network(), minibatches(), Mock()
    method.at_weights.return_value = None
    Algorithm(net, Plain(net.parameters(), partial(SGD, lr=0.1)), method=method).update(data)
    [call] = method.at_weights.call_args_list
    assert call.kwargs["domains"].tolist() == [0] * 5 + [1] * 4 + [2] * 3
    for given, expected in zip(call.args, zip(*data, strict=True), strict=True):
        assert torch.equal(given, torch.cat(expected))


def test_update_returns_the_loss_and_the_penalty_before_the_step() -> None:
    net, data = network(), minibatches()
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    loss = F.cross_entropy(net(x), y).item()
    spread = torch.stack([F.cross_entropy(net(x), y) for x, y in data]).var().item()
    algorithm = Algorithm(net, SAM(net.parameters(), partial(SGD, lr=0.1)), method=SpreadOfRisks(net))
    assert algorithm.update(data) == pytest.approx({"loss": loss, "penalty": spread})


def test_predict_returns_the_networks_output_and_updates_keep_the_mode() -> None:
    net = network()
    algorithm = Algorithm(net, Plain(net.parameters(), partial(SGD, lr=0.1))).eval()
    x = torch.randn(2, 4)
    assert torch.equal(algorithm.predict(x), net(x))
    algorithm.update(minibatches())
    assert not net.training


def test_a_custom_loss_is_called_with_output_and_label() -> None:
    net = nn.Linear(4, 1)
    optimizer = Plain(net.parameters(), partial(SGD, lr=0.1))
    algorithm = Algorithm(net, optimizer, loss=lambda output, y: F.mse_loss(output[:, 0], y))
    x, y = torch.randn(5, 4), torch.randn(5)
    expected = F.mse_loss(net(x)[:, 0], y).item()
    assert algorithm.update([(x, y)])["loss"] == pytest.approx(expected)


def test_one_domain_is_refused_by_a_method_that_compares_domains(refused: Any) -> None:
    net = network()
    algorithm = Algorithm(net, SAM(net.parameters(), partial(SGD, lr=0.1)), method=SpreadOfRisks(net))
    before = weights(net)
    with refused("domains", got=1):
        algorithm.update(minibatches(sizes=(5,)))
    assert torch.equal(weights(net), before)


def test_wrong_minibatches_unlabelled_data_and_an_optimizer_of_torch_are_refused(refused: Any) -> None:
    net = network()
    algorithm = Algorithm(net, Plain(net.parameters(), partial(SGD, lr=0.1)))
    for sizes in ([], [(2, 3)], [(0, 0)]):
        with refused("minibatches", got=sizes):
            algorithm.update([(torch.zeros(inputs, 4), torch.zeros(labels)) for inputs, labels in sizes])
    with refused("unlabeled"):
        algorithm.update(minibatches(), [torch.zeros(2, 4)])
    with refused("optimizer", got="SGD"):
        Algorithm(net, SGD(net.parameters(), lr=0.1))
