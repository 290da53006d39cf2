from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD

from uumamba.optim import FriendlySAM

Problem = Callable[..., tuple[nn.Module, list[tuple[Tensor, Tensor]]]]
ByHand = tuple[Tensor, list[Callable[[Tensor], Tensor]]]


def test_twenty_steps_equal_the_formula_while_the_scale_grows(problem: Problem, by_hand: ByHand) -> None:
    weights, gradients = by_hand
    velocity, mean = torch.zeros_like(weights), None
    for gradient in gradients:
        g = gradient(weights)
        new = g if mean is None else g - 0.8 * mean
        mean = g if mean is None else 0.7 * mean + 0.3 * g
        velocity = 0.9 * velocity + gradient(weights + 0.2 * new / new.norm())
        weights = weights - 0.05 * velocity

    net, batches = problem(dtype=torch.float64)
    optimizer = FriendlySAM(
        net.parameters(),
        partial(SGD, lr=0.05, momentum=0.9),
        rho=0.2,
        sigma=0.8,
        lam=0.7,
        scaler=torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=3),
    )
    for x, y in batches[:20]:
        optimizer.step(lambda x=x, y=y: F.mse_loss(net(x), y))
    assert optimizer.scaler.get_scale() == 2.0**7
    torch.testing.assert_close(parameters_to_vector(net.parameters()).detach(), weights, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_never_enters_the_mean(problem: Problem, value: float) -> None:
    net, batches = problem()
    optimizer = FriendlySAM(net.parameters(), partial(SGD, lr=0.05))
    means = []
    for factor in (value, 1.0, value, 1.0):
        x, y = batches[0]
        optimizer.step(lambda x=x, y=y, factor=factor: F.mse_loss(net(x), y) * factor)
        means.append([kept["gradient_mean"].clone() for kept in optimizer.state.values()])
    assert means[0] == []
    assert optimizer.skipped_steps == 2
    assert all(torch.equal(before, after) for before, after in zip(means[1], means[2], strict=True))
    assert not torch.equal(means[2][0], means[3][0])
    assert all(torch.isfinite(mean).all() for mean in means[3])
