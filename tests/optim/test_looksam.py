from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from uumamba.optim import AdaptiveTrigger, LookSAM

LR, RHO, ALPHA = 0.05, 0.2, 0.7


def descend(weights: Tensor, gradients: Any, climbs: Callable[[int, Tensor], bool]) -> Tensor:
    """The weights after all steps of the paper's formula."""
    velocity, orthogonal = torch.zeros_like(weights), None
    for step, gradient in enumerate(gradients):
        g = gradient(weights)
        if climbs(step, g) or orthogonal is None:
            found = gradient(weights + RHO * g / g.norm())
            orthogonal = found - (found @ g) / (g @ g) * g
        else:
            found = g + ALPHA * g.norm() / orthogonal.norm() * orthogonal
        velocity = 0.9 * velocity + found
        weights = weights - LR * velocity
    return weights


@pytest.mark.parametrize("k", [1, 3, 5])
def test_twenty_steps_equal_the_formula(equals_formula: Any, k: int) -> None:
    formula = partial(descend, climbs=lambda step, g: step % k == 0)
    equals_formula(formula, partial(LookSAM, rho=RHO, alpha=ALPHA, k=k), partial(SGD, lr=LR, momentum=0.9))


@pytest.mark.parametrize("scale", [None, 2.0])
def test_a_trigger_decides_when_to_climb(equals_formula: Any, scale: float | None) -> None:
    mean, variance, verdicts = 0.0, 0.0, []

    def climbs(step: int, g: Tensor) -> bool:
        nonlocal mean, variance
        squared = float(g @ g)
        mean = 0.8 * mean + 0.2 * squared
        variance = 0.8 * variance + 0.2 * (squared - mean) ** 2
        verdicts.append(squared >= mean + (0.5 - step / 20) * variance**0.5)
        return verdicts[-1]

    trigger = AdaptiveTrigger(total_steps=20, start=0.5, end=-0.5, decay=0.8)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3) if scale else None
    make = partial(LookSAM, rho=RHO, alpha=ALPHA, trigger=trigger, scaler=scaler)
    equals_formula(partial(descend, climbs=climbs), make, partial(SGD, lr=LR, momentum=0.9))
    assert 3 < sum(verdicts) < 17


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"k": 4}, [2, 2, 1, 1, 1, 2, 1, 1]),
        ({"trigger": AdaptiveTrigger(total_steps=5, start=1e9, end=1e9)}, [2, 2, 1, 1, 1, 1, 1, 1]),
    ],
    ids=["k", "a trigger that is never due"],
)
def test_the_first_step_climbs_and_the_next_where_that_failed(
    training: Any, options: dict[str, Any], expected: list[int]
) -> None:
    run = training("LookSAM", **options)
    passes = []
    for step, batch in enumerate(run.batches(8)):
        run.step(
            run.closure(batch, lambda call, logits, step=step: logits * (float("inf") if (step, call) == (0, 2) else 1))
        )
        passes.append(len(run.seen))
    assert passes == expected
    assert run.optimizer.skipped_steps == 1


def test_rounding_is_not_made_a_direction() -> None:
    # a bowl has no flatter side: both gradients are parallel, so the steps between climbs are the base's own
    weight = nn.Parameter(torch.tensor([0.3, 0.7, 0.1]))
    optimizer = LookSAM([weight], partial(SGD, lr=0.1), rho=0.05, alpha=100.0)
    optimizer.step(lambda: weight.pow(2).sum())
    before = weight.detach().clone()
    optimizer.step(lambda: weight.pow(2).sum())
    assert torch.equal(weight, before - 0.1 * 2 * before)


def test_micro_batches_count_as_steps_in_k(training: Any) -> None:
    run, calls = training("LookSAM", k=5), 0
    for _ in range(5):
        run.step([run.closure(batch) for batch in run.batches(4)])
        calls += len(run.seen)
    assert calls == 24


def test_steps_between_climbs_take_the_mean_gradient_of_micro_batches(training: Any) -> None:
    base = partial(SGD, lr=0.1)
    run, plain = training("LookSAM", base, k=9, alpha=0.0), training("Plain", base)
    first, *batches = run.batches(4)
    run.train([first])
    plain.net.load_state_dict(run.net.state_dict())
    for each in (run, plain):
        each.step([each.closure(batch) for batch in batches])
    assert len(run.seen) == 3
    torch.testing.assert_close(run.weights, plain.weights, rtol=1e-12, atol=1e-14)
