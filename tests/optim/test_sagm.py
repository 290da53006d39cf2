from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from uumamba.optim import GSAM, SAGM, SAM, Plain, FirstPass


@pytest.mark.parametrize("alpha", [0.0, 0.1])
@pytest.mark.parametrize("scale", [None, 1024.0])
def test_twenty_steps_equal_the_formula(equals_formula: Any, alpha: float, scale: float | None) -> None:
    def formula(weights: Tensor, gradients: Any) -> Tensor:
        velocity = torch.zeros_like(weights)
        for gradient in gradients:
            g = gradient(weights)
            g_p = gradient(weights + (0.2 / g.norm() - alpha) * g)
            velocity = 0.9 * velocity + (g + g_p) / 2
            weights = weights - 0.05 * velocity
        return weights

    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    equals_formula(formula, partial(SAGM, rho=0.2, alpha=alpha, scaler=scaler), partial(SGD, lr=0.05, momentum=0.9))


def test_a_group_with_rho_of_zero_stays_and_has_the_mean_gradient() -> None:
    moved, fixed = (nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2))
    seen = []

    def closure() -> Tensor:
        seen.append((moved.item(), fixed.item()))
        return (moved * fixed).sum()

    groups = [{"params": [moved]}, {"params": [fixed], "rho": 0.0}]
    SAGM(groups, partial(SGD, lr=0.5), rho=1.0, alpha=0.1).step(closure)
    # g is (1, 1): moved goes to 1 + 1 / sqrt(2) - 0.1, where fixed's gradient is as much and moved's still 1
    there = 1 + 2**-0.5 - 0.1
    assert seen[1] == pytest.approx((there, 1.0))
    assert (moved.item(), fixed.item()) == pytest.approx((0.5, 1 - 0.5 * (1 + there) / 2))


def test_a_hook_gets_both_gradients_before_they_are_mixed_and_may_change_them() -> None:
    weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = SAGM([weight], partial(SGD, lr=0.25), rho=1.0, alpha=0.125)
    seen = []

    def without_first(first: FirstPass, second: Sequence[Tensor]) -> None:
        seen.append((first.grads[0].item(), second[0].item()))
        first.grads[0].zero_()

    handle = optimizer.register_before_mix(without_first)
    optimizer.step(lambda: (weight**2).sum())  # gradient 4 at 2, 5 at 2 + 1 - 0.125 * 4
    assert seen == [(4.0, 5.0)]
    assert weight.item() == 2 - 0.25 * 5 / 2
    handle.remove()
    optimizer.step(lambda: (weight**2).sum())
    assert len(seen) == 1


@pytest.mark.parametrize("make", [Plain, SAM, GSAM])
def test_a_hook_is_refused_where_a_step_does_not_descend_with_both(make: Callable[..., Any], refused: Any) -> None:
    optimizer = make([nn.Parameter(torch.ones(1))], partial(SGD, lr=0.1))
    with refused("optimizer", got=make.__name__):
        optimizer.register_before_mix(lambda first, second: None)
