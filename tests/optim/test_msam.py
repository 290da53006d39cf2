from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD, Adafactor, Adam, Optimizer, RMSprop
from torch.optim.swa_utils import AveragedModel

from uumamba.optim import MSAM


def by_sgd(weights: Tensor, gradients: Any) -> Tensor:
    velocity = torch.zeros_like(weights)
    for gradient in gradients:
        ahead = 0.3 * velocity / velocity.norm() if velocity.any() else velocity
        velocity = 0.9 * velocity + gradient(weights - ahead)
        weights = weights - 0.05 * velocity
    return weights


def by_adam(weights: Tensor, gradients: Any) -> Tensor:
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)
    for step, gradient in enumerate(gradients, start=1):
        g = gradient(weights - (0.3 * first / first.norm() if first.any() else first))
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        weights = weights - 0.01 * first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    return weights


@pytest.mark.parametrize(
    ("formula", "base"), [(by_sgd, partial(SGD, lr=0.05, momentum=0.9)), (by_adam, partial(Adam, lr=0.01))]
)
def test_twenty_steps_equal_the_formula(equals_formula: Any, formula: Any, base: Any) -> None:
    optimizer = equals_formula(formula, partial(MSAM, rho=0.3), base)
    assert optimizer.state_dict()["state"] == {}, "its state is the base's alone"


def test_outside_a_step_the_weights_are_the_unperturbed_ones(training: Any) -> None:
    # so evaluation, averaging and checkpoints between steps see the base's weights alone
    run = training("MSAM", rho=0.3)
    average = AveragedModel(run.net, avg_fn=lambda average, current, count: current)
    weights, velocity = run.weights, torch.tensor(0.0)
    for step, batch in enumerate(run.batches(4)):
        run.step(run.closure(batch))
        torch.testing.assert_close(run.seen[0], weights - (0.3 * velocity / velocity.norm() if step else 0))
        state = run.optimizer.base.state
        velocity = torch.cat([state[param]["momentum_buffer"].flatten() for param in run.net.parameters()])
        weights = weights - 0.05 * velocity
        average.update_parameters(run.net)
        for found in (run.weights, parameters_to_vector(average.module.parameters()).detach()):
            torch.testing.assert_close(found, weights, rtol=0, atol=1e-15)


@pytest.mark.parametrize("base", [RMSprop, Adafactor])
def test_a_base_without_a_momentum_is_refused_at_its_second_step(base: Callable[..., Optimizer], refused: Any) -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = MSAM([weight], base)
    optimizer.step(lambda: weight.pow(2).sum())
    before = weight.detach().clone()
    with refused("base"):
        optimizer.step(lambda: weight.pow(2).sum())
    assert torch.equal(weight, before)


def test_groups_that_are_not_climbed_need_no_momentum() -> None:
    climbed, still = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    groups = [{"params": [climbed]}, {"params": [still], "momentum": 0.0, "perturb": False}]
    optimizer = MSAM(groups, partial(SGD, lr=0.1, momentum=0.9))
    for _ in range(3):
        optimizer.step(lambda: (climbed * still).sum())
    assert (still < 1).all()
