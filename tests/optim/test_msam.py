from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.swa_utils import AveragedModel

from uumamba.optim import MSAM
from uumamba.runtime.errors import UsageError

Problem = Callable[..., tuple[nn.Module, list[tuple[Tensor, Tensor]]]]
ByHand = tuple[Tensor, list[Callable[[Tensor], Tensor]]]


class Signed(Optimizer):
    """A base that keeps nothing at all."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                param -= group["lr"] * param.grad.sign()


def trained(problem: Problem, base: Callable[..., Optimizer]) -> Tensor:
    net, batches = problem(dtype=torch.float64)
    optimizer = MSAM(net.parameters(), base, rho=0.3)
    for x, y in batches[:20]:
        optimizer.step(lambda x=x, y=y: F.mse_loss(net(x), y))
    return parameters_to_vector(net.parameters()).detach()


def test_twenty_steps_around_sgd_equal_the_formula(problem: Problem, by_hand: ByHand) -> None:
    weights, gradients = by_hand
    velocity = torch.zeros_like(weights)
    for gradient in gradients:
        ahead = 0.3 * velocity / velocity.norm() if velocity.any() else velocity
        velocity = 0.9 * velocity + gradient(weights - ahead)
        weights = weights - 0.05 * velocity
    torch.testing.assert_close(trained(problem, partial(SGD, lr=0.05, momentum=0.9)), weights, rtol=1e-9, atol=1e-12)


def test_twenty_steps_around_adam_equal_the_formula(problem: Problem, by_hand: ByHand) -> None:
    weights, gradients = by_hand
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)
    for step, gradient in enumerate(gradients, start=1):
        ahead = 0.3 * first / first.norm() if first.any() else first
        g = gradient(weights - ahead)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        weights = weights - 0.01 * first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    torch.testing.assert_close(trained(problem, partial(Adam, lr=0.01)), weights, rtol=1e-9, atol=1e-12)


def test_outside_a_step_the_weights_are_the_unperturbed_ones(problem: Problem) -> None:
    # so evaluation, averaging and checkpoints between steps see what the base made, and nothing else
    net, [(x, y), *_] = problem(dtype=torch.float64)
    optimizer = MSAM(net.parameters(), partial(SGD, lr=0.05, momentum=0.9), rho=0.3)
    average = AveragedModel(net, avg_fn=lambda average, current, count: current)
    weights, velocity = parameters_to_vector(net.parameters()).detach(), torch.tensor(0.0)
    seen = []

    def closure() -> Tensor:
        seen.append(parameters_to_vector(net.parameters()).detach())
        return F.mse_loss(net(x), y)

    for step in range(4):
        optimizer.step(closure)
        assert torch.equal(seen[step], weights) == (step == 0), "inside, they are perturbed"
        torch.testing.assert_close(seen[step], weights - (0.3 * velocity / velocity.norm() if step else 0))
        velocity = torch.cat([optimizer.base.state[param]["momentum_buffer"].flatten() for param in net.parameters()])
        weights = weights - 0.05 * velocity
        average.update_parameters(net)
        for found in (net, average.module):
            torch.testing.assert_close(parameters_to_vector(found.parameters()).detach(), weights, rtol=0, atol=1e-15)
        stored = torch.cat([value.flatten() for value in net.state_dict().values()])
        torch.testing.assert_close(stored, weights, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("base", "found"), [(partial(RMSprop, lr=0.01), "step, square_avg"), (Signed, "nothing")], ids=["RMSprop", "Signed"]
)
def test_a_base_without_a_momentum_is_refused_at_its_second_step(base: Callable[..., Optimizer], found: str) -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = MSAM([weight], base)
    optimizer.step(lambda: weight.pow(2).sum())
    before = weight.detach().clone()
    with pytest.raises(UsageError, match=f"keeps none of momentum_buffer, exp_avg, but {found}. MSAM moves along"):
        optimizer.step(lambda: weight.pow(2).sum())
    assert torch.equal(weight, before)


def test_groups_that_are_not_climbed_need_no_momentum() -> None:
    climbed, still = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    groups = [{"params": [climbed]}, {"params": [still], "momentum": 0.0, "perturb": False}]
    optimizer = MSAM(groups, partial(SGD, lr=0.1, momentum=0.9))
    for _ in range(3):
        optimizer.step(lambda: (climbed * still).sum())
    assert (still < 1).all()


def test_its_state_is_the_bases_alone(problem: Problem) -> None:
    net, [(x, y), *_] = problem()
    optimizer = MSAM(net.parameters(), partial(AdamW, lr=0.01))
    for _ in range(2):
        optimizer.step(lambda: F.mse_loss(net(x), y))
    assert optimizer.state_dict()["state"] == {}
