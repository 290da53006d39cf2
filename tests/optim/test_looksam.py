from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD

from uumamba.optim import AdaptiveTrigger, LookSAM

Problem = Callable[..., tuple[nn.Module, list[tuple[Tensor, Tensor]]]]
ByHand = tuple[Tensor, list[Callable[[Tensor], Tensor]]]
LR, RHO, ALPHA = 0.05, 0.2, 0.7


def descended(
    weights: Tensor, gradients: list[Callable[[Tensor], Tensor]], climbs: Callable[[int, Tensor], bool]
) -> tuple[Tensor, int]:
    """The weights after all steps of the formula, and how many of them climbed."""
    velocity, flatter, climbed = torch.zeros_like(weights), None, 0
    for step, gradient in enumerate(gradients):
        g = gradient(weights)
        if climbs(step, g) or flatter is None:
            g_s = gradient(weights + RHO * g / g.norm())
            flatter = g_s - (g_s @ g) / (g @ g) * g
            found, climbed = g_s, climbed + 1
        else:
            found = g + ALPHA * g.norm() / flatter.norm() * flatter
        velocity = 0.9 * velocity + found
        weights = weights - LR * velocity
    return weights, climbed


@pytest.mark.parametrize("k", [1, 3, 5])
def test_twenty_steps_equal_the_formula(problem: Problem, by_hand: ByHand, k: int) -> None:
    expected, climbed = descended(*by_hand, lambda step, g: step % k == 0)
    net, batches = problem(dtype=torch.float64)
    optimizer = LookSAM(net.parameters(), partial(SGD, lr=LR, momentum=0.9), rho=RHO, alpha=ALPHA, k=k)
    calls = []

    def closure(x: Tensor, y: Tensor) -> Tensor:
        calls.append(None)
        return F.mse_loss(net(x), y)

    for x, y in batches[:20]:
        optimizer.step(partial(closure, x, y))
    torch.testing.assert_close(parameters_to_vector(net.parameters()).detach(), expected, rtol=1e-9, atol=1e-12)
    assert len(calls) == 20 + climbed == 20 + -(-20 // k)


@pytest.mark.parametrize("scaler", [None, torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=3)])
def test_a_trigger_decides_when_to_climb(
    problem: Problem, by_hand: ByHand, scaler: torch.amp.GradScaler | None
) -> None:
    mean, variance = 0.0, 0.0

    def climbs(step: int, g: Tensor) -> bool:
        nonlocal mean, variance
        squared = float(g @ g)
        mean = 0.8 * mean + 0.2 * squared
        variance = 0.8 * variance + 0.2 * (squared - mean) ** 2
        return squared >= mean + (0.5 - step / 20) * variance**0.5

    expected, climbed = descended(*by_hand, climbs)
    assert 3 < climbed < 17
    net, batches = problem(dtype=torch.float64)
    trigger = AdaptiveTrigger(total_steps=20, start=0.5, end=-0.5, decay=0.8)
    base = partial(SGD, lr=LR, momentum=0.9)
    optimizer = LookSAM(net.parameters(), base, rho=RHO, alpha=ALPHA, trigger=trigger, scaler=scaler)
    for x, y in batches[:20]:
        optimizer.step(lambda x=x, y=y: F.mse_loss(net(x), y))
    torch.testing.assert_close(parameters_to_vector(net.parameters()).detach(), expected, rtol=1e-9, atol=1e-12)


def test_the_first_step_climbs_whatever_the_trigger_says(problem: Problem) -> None:
    # and so does the next where that climb fails, or there would be nothing to use again
    net, batches = problem()
    never = AdaptiveTrigger(total_steps=5, start=1e9, end=1e9)
    optimizer, passes = LookSAM(net.parameters(), partial(SGD, lr=0.05), trigger=never), []
    for step, (x, y) in enumerate(batches[:5]):
        calls = []

        def closure(x: Tensor = x, y: Tensor = y, step: int = step, calls: list[None] = calls) -> Tensor:
            calls.append(None)
            return F.mse_loss(net(x), y) * (float("nan") if step == 0 and len(calls) == 2 else 1.0)

        optimizer.step(closure)
        passes.append(len(calls))
    assert passes == [2, 2, 1, 1, 1]


def test_a_climb_that_failed_is_made_up_for(problem: Problem) -> None:
    net, batches = problem()
    optimizer = LookSAM(net.parameters(), partial(SGD, lr=0.05), k=4)
    passes = []
    for step, (x, y) in enumerate(batches[:8]):
        calls = []

        def closure(x: Tensor = x, y: Tensor = y, step: int = step, calls: list[None] = calls) -> Tensor:
            calls.append(None)
            return F.mse_loss(net(x), y) * (float("inf") if step == 0 and len(calls) == 2 else 1.0)

        optimizer.step(closure)
        passes.append(len(calls))
    assert passes == [2, 2, 1, 1, 1, 2, 1, 1]
    assert optimizer.skipped_steps == 1


def test_rounding_is_not_made_a_direction() -> None:
    # a bowl has no flatter side: both gradients are parallel, so the steps between climbs are the base's own
    weight = nn.Parameter(torch.tensor([0.3, 0.7, 0.1]))
    optimizer = LookSAM([weight], partial(SGD, lr=0.1), rho=0.05, alpha=100.0)
    optimizer.step(lambda: weight.pow(2).sum())
    before = weight.detach().clone()
    optimizer.step(lambda: weight.pow(2).sum())
    assert torch.equal(weight, before - 0.1 * 2 * before)
    assert optimizer.state[weight]["flatter"].count_nonzero() == 0


def test_micro_batches_count_as_steps_in_k(problem: Problem) -> None:
    net, batches = problem(batches=4)
    optimizer, calls = LookSAM(net.parameters(), partial(SGD, lr=0.05), k=5), []

    def closure(x: Tensor, y: Tensor) -> Tensor:
        calls.append(None)
        return F.mse_loss(net(x), y)

    for _ in range(5):
        optimizer.step([partial(closure, x, y) for x, y in batches])
    assert len(calls) == 24
