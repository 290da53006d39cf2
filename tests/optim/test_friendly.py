from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from uumamba.optim import FriendlySAM


def test_twenty_steps_equal_the_formula_while_the_scale_grows(equals_formula: Any) -> None:
    def formula(weights: Tensor, gradients: Any) -> Tensor:
        velocity, mean = torch.zeros_like(weights), None
        for gradient in gradients:
            g = gradient(weights)
            new = g if mean is None else g - 0.8 * mean
            mean = g if mean is None else 0.7 * mean + 0.3 * g
            velocity = 0.9 * velocity + gradient(weights + 0.2 * new / new.norm())
            weights = weights - 0.05 * velocity
        return weights

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=3)
    make = partial(FriendlySAM, rho=0.2, sigma=0.8, lam=0.7, scaler=scaler)
    equals_formula(formula, make, partial(SGD, lr=0.05, momentum=0.9))
    assert scaler.get_scale() == 2.0**7


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_never_enters_the_mean(training: Any, value: float) -> None:
    run, means = training("FriendlySAM"), []
    for factor, batch in zip((value, 1.0, value, 1.0), run.batches(4), strict=True):
        run.step(run.closure(batch, lambda call, logits, factor=factor: logits * factor))
        means.append([kept["gradient_mean"].clone() for kept in run.optimizer.state.values()])
    assert means[0] == []
    assert all(torch.equal(before, after) for before, after in zip(means[1], means[2], strict=True))
    assert not torch.equal(means[2][0], means[3][0])
