from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from uumamba.optim import GSAM, SAM


def test_twenty_steps_equal_the_formula_while_the_radius_follows_the_learning_rate(equals_formula: Any) -> None:
    # the factor goes through 0.05, 0.1, ..., 1: below lr_min the radius stays at rho_min
    rho, rho_min, lr_max, lr_min, alpha = 0.5, 0.1, 0.1, 0.02, 0.7

    def formula(weights: Tensor, gradients: Any) -> Tensor:
        for step, gradient in enumerate(gradients):
            lr = lr_max * (step + 1) / 20
            radius = max(rho_min, rho_min + (rho - rho_min) * (lr - lr_min) / (lr_max - lr_min))
            g = gradient(weights)
            g_p = gradient(weights + radius * g / g.norm())
            cosine = (g @ g_p) / (g.norm() * g_p.norm())
            weights = weights - lr * (g_p - alpha * (g - cosine * g.norm() * g_p / g_p.norm()))
        return weights

    def make(params: Any, base: Any) -> GSAM:
        optimizer = GSAM(params, base, rho=rho, rho_min=rho_min, lr_max=lr_max, lr_min=lr_min, alpha=alpha)
        scheduler = LambdaLR(optimizer, lambda step: (step + 1) / 20)
        optimizer.register_step_post_hook(lambda *_: scheduler.step())
        return optimizer

    equals_formula(formula, make, partial(SGD, lr=lr_max))


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
