from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from uumamba.optim import ASAM

SIZES = [40, 8, 24, 3]  # of the formula's network: weights, biases, weights, biases


@pytest.mark.parametrize("normalize_bias", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.01])
def test_twenty_steps_equal_the_formula(equals_formula: Any, normalize_bias: bool, eta: float) -> None:
    one_axis = torch.cat([torch.full((size,), bool(index % 2)) for index, size in enumerate(SIZES)])

    def formula(weights: Tensor, gradients: Any) -> Tensor:
        for gradient in gradients:
            g, t = gradient(weights), weights.abs() + eta
            if not normalize_bias:
                t = torch.where(one_axis, 1.0, t)
            weights = weights - 0.1 * gradient(weights + 0.5 * t**2 * g / (t * g).norm())
        return weights

    equals_formula(formula, partial(ASAM, rho=0.5, eta=eta, normalize_bias=normalize_bias), partial(SGD, lr=0.1))


def perturbation(net: nn.Module, closure: Callable[[], Tensor], **options: float) -> list[Tensor]:
    """The change of each parameter from the first pass to the second."""
    seen = []

    def watched() -> Tensor:
        seen.append([param.detach().clone() for param in net.parameters()])
        return closure()

    ASAM(net.parameters(), partial(SGD, lr=0.0), **options).step(watched)
    return [after - before for before, after in zip(*seen, strict=True)]


def test_rescaled_layers_are_perturbed_in_proportion() -> None:
    # relu(c W1 x) W2 / c is the same function; with eta 0 the perturbations scale by c and 1 / c
    x, factor = torch.randn(7, 4, dtype=torch.float64), 8.0
    nets = [nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 2, bias=False)).double() for _ in "ab"]
    nets[1].load_state_dict(nets[0].state_dict())
    with torch.no_grad():
        nets[1][0].weight *= factor
        nets[1][2].weight /= factor
    first, second = (perturbation(net, lambda net=net: net(x).pow(2).sum(), rho=0.5, eta=0.0) for net in nets)
    torch.testing.assert_close(second[0], factor * first[0])
    torch.testing.assert_close(second[1], first[1] / factor)


def test_weights_of_zero_move_only_by_eta() -> None:
    net = nn.Linear(3, 1, bias=False)
    nn.init.zeros_(net.weight)
    for eta, moves in ((0.0, False), (0.01, True)):
        eps = perturbation(net, lambda: net(torch.ones(1, 3)).sum(), rho=0.5, eta=eta)
        assert bool(eps[0].any()) is moves
