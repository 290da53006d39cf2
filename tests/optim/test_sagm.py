from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD

from uumamba.optim import GSAM, SAGM, SAM, Plain, Slope
from uumamba.runtime.errors import UsageError

Problem = Callable[..., tuple[nn.Module, list[tuple[Tensor, Tensor]]]]
ByHand = tuple[Tensor, list[Callable[[Tensor], Tensor]]]


@pytest.mark.parametrize("alpha", [0.0, 0.1])
@pytest.mark.parametrize("scale", [None, 1024.0])
def test_twenty_steps_equal_the_formula(problem: Problem, by_hand: ByHand, alpha: float, scale: float | None) -> None:
    weights, gradients = by_hand
    velocity = torch.zeros_like(weights)
    for gradient in gradients:
        g = gradient(weights)
        g_p = gradient(weights + (0.2 / g.norm() - alpha) * g)
        velocity = 0.9 * velocity + (g + g_p) / 2
        weights = weights - 0.05 * velocity

    net, batches = problem(dtype=torch.float64)
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    optimizer = SAGM(net.parameters(), partial(SGD, lr=0.05, momentum=0.9), rho=0.2, alpha=alpha, scaler=scaler)
    for x, y in batches[:20]:
        optimizer.step(lambda x=x, y=y: F.mse_loss(net(x), y))
    torch.testing.assert_close(parameters_to_vector(net.parameters()).detach(), weights, rtol=1e-9, atol=1e-12)


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


def test_a_hook_sees_both_gradients_before_they_are_mixed_and_may_change_them() -> None:
    weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = SAGM([weight], partial(SGD, lr=0.25), rho=1.0, alpha=0.125)
    seen = []

    def without_first(slope: Slope, second: Sequence[Tensor]) -> None:
        seen.append((slope.grads[0].item(), second[0].item()))
        slope.grads[0].zero_()

    handle = optimizer.register_before_mix(without_first)
    optimizer.step(lambda: (weight**2).sum())  # gradient 4 at 2, 5 at 2 + 1 - 0.125 * 4
    assert seen == [(4.0, 5.0)]
    assert weight.item() == 2 - 0.25 * 5 / 2
    handle.remove()
    optimizer.step(lambda: (weight**2).sum())
    assert len(seen) == 1


@pytest.mark.parametrize("member", [Plain, SAM, GSAM])
def test_a_hook_is_refused_where_a_step_does_not_descend_with_both(member: Callable[..., SAGM]) -> None:
    optimizer = member([nn.Parameter(torch.ones(1))], partial(SGD, lr=0.1))
    with pytest.raises(UsageError, match=f"{member.__name__} does not descend with both.*take SAGM"):
        optimizer.register_before_mix(lambda slope, second: None)
