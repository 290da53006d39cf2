from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from uumamba.optim import SAM, Plain, Rule, SharpnessAware, Slope
from uumamba.optim.sam import along_gradient

Problem = Callable[..., tuple[nn.Module, list[tuple[Tensor, Tensor]]]]
LR, RHO = 0.1, 0.3


def closures_of(net: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> list[Callable[[], Tensor]]:
    return [lambda x=x, y=y: F.mse_loss(net(x), y) for x, y in batches]


def gradient(net: nn.Module, weights: list[Tensor], batches: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The mean gradient over batches at given weights, without any optimizer."""
    named = dict(zip([name for name, _ in net.named_parameters()], weights, strict=True))
    leaves = {name: weight.detach().clone().requires_grad_() for name, weight in named.items()}
    losses = [F.mse_loss(torch.func.functional_call(net, leaves, (x,)), y) for x, y in batches]
    return list(torch.autograd.grad(torch.stack(losses).mean(), list(leaves.values())))


def climbed(weights: list[Tensor], slope: list[Tensor]) -> list[Tensor]:
    norm = torch.cat([g.flatten() for g in slope]).norm()
    return [weight + RHO * g / norm for weight, g in zip(weights, slope, strict=True)]


def mean(gradients: list[list[Tensor]]) -> list[Tensor]:
    return [torch.stack(parts).mean(0) for parts in zip(*gradients, strict=True)]


def assert_steps_by(net: nn.Module, before: list[Tensor], expected: list[Tensor]) -> None:
    for param, start, g in zip(net.parameters(), before, expected, strict=True):
        torch.testing.assert_close(param.detach(), start - LR * g)


@pytest.mark.parametrize("accumulation", ["micro", "full"])
def test_sam_over_three_micro_batches_has_its_closed_form(
    problem: Problem, accumulation: Literal["micro", "full"]
) -> None:
    net, batches = problem(dtype=torch.float64, batches=3)
    before = [param.detach().clone() for param in net.parameters()]
    if accumulation == "micro":
        points = [climbed(before, gradient(net, before, [batch])) for batch in batches]
        expected = mean([gradient(net, point, [batch]) for point, batch in zip(points, batches, strict=True)])
    else:
        expected = gradient(net, climbed(before, gradient(net, before, batches)), batches)
    optimizer = SAM(net.parameters(), partial(SGD, lr=LR), rho=RHO, accumulation=accumulation)
    loss = optimizer.step(closures_of(net, batches))
    assert_steps_by(net, before, expected)
    other, _ = problem(dtype=torch.float64, batches=3)
    torch.testing.assert_close(loss, torch.stack([closure() for closure in closures_of(other, batches)]).mean())


@pytest.mark.parametrize("accumulation", ["micro", "full"])
def test_at_weights_is_added_once(problem: Problem, accumulation: Literal["micro", "full"]) -> None:
    steps = []
    for penalty in (None, lambda net: sum(param.pow(2).sum() for param in net.parameters())):
        net, batches = problem(dtype=torch.float64, batches=3)
        before = [param.detach().clone() for param in net.parameters()]
        optimizer = SAM(net.parameters(), partial(SGD, lr=LR), rho=RHO, accumulation=accumulation)
        optimizer.step(closures_of(net, batches), at_weights=None if penalty is None else partial(penalty, net))
        steps.append([param.detach() for param in net.parameters()])
    for plain, penalised, start in zip(*steps, before, strict=True):
        torch.testing.assert_close(penalised, plain - LR * 2 * start)


def test_plain_over_micro_batches_takes_the_mean_gradient(problem: Problem) -> None:
    net, batches = problem(dtype=torch.float64, batches=3)
    before = [param.detach().clone() for param in net.parameters()]
    Plain(net.parameters(), partial(SGD, lr=LR)).step(closures_of(net, batches))
    assert_steps_by(net, before, gradient(net, before, batches))


def test_torch_style_closures_accumulate_alike(problem: Problem) -> None:
    results = []
    for runs_backward in (False, True):
        net, batches = problem(batches=3)
        optimizer = SAM(net.parameters(), partial(SGD, lr=LR), rho=RHO)

        def closure(
            x: Tensor,
            y: Tensor,
            net: nn.Module = net,
            optimizer: SAM = optimizer,
            runs_backward: bool = runs_backward,
        ) -> Tensor:
            loss = F.mse_loss(net(x), y)
            if runs_backward:
                optimizer.zero_grad()
                loss.backward()
            return loss

        optimizer.step([partial(closure, x, y) for x, y in batches])
        results.append([param.detach() for param in net.parameters()])
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs)


def test_one_closure_is_the_same_either_way(climber: type[SharpnessAware], problem: Problem) -> None:
    results = []
    for accumulation, as_list in (("micro", False), ("micro", True), ("full", True)):
        net, batches = problem(batches=1)
        closures = closures_of(net, batches)
        optimizer = climber(net.parameters(), partial(SGD, lr=LR, momentum=0.9), accumulation=accumulation)
        for _ in range(3):
            optimizer.step(closures if as_list else closures[0])
        results.append([param.detach() for param in net.parameters()])
    for a, b, c in zip(*results, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_one_micro_batch_that_is_not_finite_skips_the_whole_step(
    climber: type[SharpnessAware], problem: Problem
) -> None:
    net, batches = problem(batches=3)
    before = [param.detach().clone() for param in net.parameters()]
    closures = closures_of(net, batches)
    calls = []

    def broken() -> Tensor:
        calls.append(None)
        return closures[1]() * (float("inf") if len(calls) == 1 else 1.0)

    optimizer = climber(net.parameters(), partial(SGD, lr=LR, momentum=0.9))
    optimizer.step([closures[0], broken, closures[2]])
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert optimizer.skipped_steps == 1


@pytest.mark.parametrize("accumulation", ["micro", "full"])
def test_a_mixing_rule_gets_both_gradients_of_each_climb(
    problem: Problem, accumulation: Literal["micro", "full"]
) -> None:
    net, batches = problem(dtype=torch.float64, batches=2)
    before = [param.detach().clone() for param in net.parameters()]
    expected = []
    for block in [batches] if accumulation == "full" else [[batch] for batch in batches]:
        first = gradient(net, before, block)
        second = gradient(net, climbed(before, first), block)
        expected.append([(one + two) / 2 + 2 * w for one, two, w in zip(first, second, before, strict=True)])

    def average(slope: Slope, second: Sequence[Tensor]) -> list[Tensor]:
        return [(one + two) / 2 for one, two in zip(slope.grads, second, strict=True)]

    optimizer = SharpnessAware(
        net.parameters(),
        partial(SGD, lr=LR),
        rule=Rule(climb=along_gradient, mix=average),
        group_defaults={"rho": RHO},
        accumulation=accumulation,
    )
    optimizer.step(closures_of(net, batches), at_weights=lambda: sum(param.pow(2).sum() for param in net.parameters()))
    assert_steps_by(net, before, mean(expected))


@pytest.mark.parametrize("constant", [float("inf"), float("nan")])
def test_a_loss_that_is_not_finite_skips_the_step_although_its_gradient_is(
    member: type[SharpnessAware], problem: Problem, constant: float
) -> None:
    """A cross entropy of a class with logit -inf is such a loss."""
    net, batches = problem(batches=3)
    optimizer = member(net.parameters(), partial(SGD, lr=LR, momentum=0.9))
    closures = closures_of(net, batches)
    optimizer.step(closures[0])
    before = [param.detach().clone() for param in net.parameters()]
    optimizer.step([closures[1], lambda: closures[2]() + constant])
    assert optimizer.skipped_steps == 1
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
