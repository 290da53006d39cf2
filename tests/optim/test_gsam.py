from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from uumamba.optim import GSAM, SAM

Problem = Callable[..., tuple[nn.Module, list[tuple[Tensor, Tensor]]]]
ByHand = tuple[Tensor, list[Callable[[Tensor], Tensor]]]


def test_twenty_steps_equal_pytorch_optimizers(problem: Problem) -> None:
    net, batches = problem(dtype=torch.float64)
    ours = GSAM(net.parameters(), partial(SGD, lr=0.05, momentum=0.9), rho=0.2, alpha=0.4)
    other, _ = problem(dtype=torch.float64)
    radius = SimpleNamespace(step=lambda: 0.2)
    base = SGD(other.parameters(), lr=0.05, momentum=0.9)
    theirs = pytorch_optimizer.GSAM(other.parameters(), base, other, radius, alpha=0.4)
    for x, y in batches[:20]:
        ours.step(lambda x=x, y=y: F.mse_loss(net(x), y))
        theirs.set_closure(F.mse_loss, x, y)
        theirs.step()
    for mine, reference in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-6, atol=1e-8)  # its norm is float32


def test_the_radius_follows_the_learning_rate(problem: Problem, by_hand: ByHand) -> None:
    # the factor goes through 0.05, 0.1, ..., 1: below lr_min the radius stays at rho_min
    rho_max, rho_min, lr_max, lr_min, alpha = 0.5, 0.1, 0.1, 0.02, 0.7
    weights, gradients = by_hand
    for step, gradient in enumerate(gradients):
        lr = lr_max * (step + 1) / 20
        radius = max(rho_min, rho_min + (rho_max - rho_min) * (lr - lr_min) / (lr_max - lr_min))
        g = gradient(weights)
        g_p = gradient(weights + radius * g / g.norm())
        cosine = (g @ g_p) / (g.norm() * g_p.norm())
        g_across = g - cosine * g.norm() * g_p / g_p.norm()
        weights = weights - lr * (g_p - alpha * g_across)

    net, batches = problem(dtype=torch.float64)
    options = {"rho": rho_max, "rho_min": rho_min, "lr_max": lr_max, "lr_min": lr_min, "alpha": alpha}
    optimizer = GSAM(net.parameters(), partial(SGD, lr=lr_max), **options)
    scheduler = LambdaLR(optimizer, lambda step: (step + 1) / 20)
    for x, y in batches[:20]:
        optimizer.step(lambda x=x, y=y: F.mse_loss(net(x), y))
        scheduler.step()
    torch.testing.assert_close(parameters_to_vector(net.parameters()).detach(), weights, rtol=1e-9, atol=1e-12)


def test_each_group_follows_its_own_learning_rate() -> None:
    fast, slow = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    seen = []

    def closure() -> Tensor:
        seen.append((fast.item(), slow.item()))
        return (fast + slow).sum()

    groups = [{"params": [fast], "lr": 1.0}, {"params": [slow], "lr": 0.5, "rho": 0.8}]
    GSAM(groups, partial(SGD, lr=1.0), rho=0.4, rho_min=0.2, lr_max=1.0).step(closure)
    # g is (1, 1), of length sqrt(2); the radii are 0.4, and 0.2 + 0.6 / 2
    moves = [after - before for before, after in zip(*seen, strict=True)]
    assert moves == pytest.approx([0.4 / 2**0.5, 0.5 / 2**0.5], rel=1e-6)


def test_parallel_gradients_leave_nothing_to_subtract() -> None:
    # L = |w|^2: both gradients point the same way, so alpha has no effect
    results = []
    for make in (SAM, partial(GSAM, alpha=0.9)):
        weight = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
        make([weight], partial(SGD, lr=0.1), rho=0.5).step(lambda weight=weight: weight.pow(2).sum())
        results.append(weight.detach())
    torch.testing.assert_close(*results)


def test_a_group_below_rho_min_is_refused_unless_it_does_not_climb() -> None:
    weights = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    make = partial(GSAM, base=partial(SGD, lr=1.0), rho=0.4, rho_min=0.2, lr_max=1.0)
    still = [{"params": weights[:1]}, {"params": weights[1:2], "rho": 0.0}]
    make([*still, {"params": weights[2:], "rho": 0.1, "perturb": False}])
    with pytest.raises(ValueError, match=r"rho of parameter group 2 must be 0 or at least rho_min 0\.2, got 0\.1"):
        make([*still, {"params": weights[2:], "rho": 0.1}])
