from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from uumamba.optim import ASAM

Problem = Callable[..., tuple[nn.Module, list[tuple[Tensor, Tensor]]]]


def perturbation(net: nn.Module, closure: Callable[[], Tensor], **options: float | bool) -> list[Tensor]:
    """What the second closure sees added to each parameter."""
    seen = []

    def watched() -> Tensor:
        seen.append([param.detach().clone() for param in net.parameters()])
        return closure()

    ASAM(net.parameters(), partial(SGD, lr=0.0), **options).step(watched)
    return [after - before for before, after in zip(*seen, strict=True)]


@pytest.mark.parametrize("normalize_bias", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.01])
def test_the_perturbation_has_the_closed_form(problem: Problem, normalize_bias: bool, eta: float) -> None:
    net, [(x, y), *_] = problem(dtype=torch.float64)
    gradients = torch.autograd.grad(F.mse_loss(net(x), y), list(net.parameters()))
    scales = [
        param.detach().abs() + eta if normalize_bias or param.ndim > 1 else torch.ones_like(param)
        for param in net.parameters()
    ]
    norm = sum(((t * g) ** 2).sum() for t, g in zip(scales, gradients, strict=True)) ** 0.5
    eps = perturbation(net, lambda: F.mse_loss(net(x), y), rho=0.5, eta=eta, normalize_bias=normalize_bias)
    for found, t, g in zip(eps, scales, gradients, strict=True):
        torch.testing.assert_close(found, 0.5 * t**2 * g / norm)
    length = sum(((found / t) ** 2).sum() for found, t in zip(eps, scales, strict=True)) ** 0.5
    assert length.item() == pytest.approx(0.5, rel=1e-9)


def test_rescaled_layers_are_perturbed_in_proportion() -> None:
    # relu(c W1 x) W2 / c is the same function; with eta 0 the perturbations scale by c and 1 / c
    torch.manual_seed(0)
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
