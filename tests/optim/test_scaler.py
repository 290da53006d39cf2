"""The fp16 gradient scaler, run on the CPU, where it exists as well."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW

from uumamba.optim import SharpnessAware
from uumamba.runtime.errors import UsageError

Member = type[SharpnessAware]
Problem = Callable[..., tuple[nn.Module, list[tuple[Tensor, Tensor]]]]


def make_scaler(**options: float) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", **({"init_scale": 1024.0, "growth_interval": 1000} | options))


def test_a_scaled_run_equals_an_unscaled_one(member: Member, problem: Problem) -> None:
    # a power of two scales float32 gradients exactly
    results = []
    for scaler in (None, make_scaler(growth_interval=4)):  # what is kept over steps must not see the scale grow
        net, batches = problem()
        optimizer = member(net.parameters(), partial(AdamW, lr=0.01), scaler=scaler, max_grad_norm=0.5)
        losses = [optimizer.step(lambda x=x, y=y, net=net: F.mse_loss(net(x), y)) for x, y in batches]
        results.append([*net.parameters(), torch.stack(losses)])
    for plain, scaled in zip(*results, strict=True):
        torch.testing.assert_close(plain, scaled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad_pass", [1, 2])
def test_an_overflow_in_either_pass_backs_off_and_keeps_the_weights(
    climber: Member, problem: Problem, one_pass: list[Member], bad_pass: int
) -> None:
    net, [(x, y), *_] = problem()
    scaler = make_scaler()
    optimizer = climber(net.parameters(), partial(SGD, lr=0.1, momentum=0.9), scaler=scaler)
    before, calls = [param.detach().clone() for param in net.parameters()], []

    def closure() -> Tensor:
        calls.append(None)
        loss = F.mse_loss(net(x), y)
        return loss * 1e38 * 1e38 if len(calls) == (1 if climber in one_pass else bad_pass) else loss

    optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert scaler.get_scale() == 512
    assert optimizer.skipped_steps == 1
    optimizer.step(closure)
    assert optimizer.skipped_steps == 1
    assert scaler.get_scale() == 512
    assert not torch.equal(before[0], next(net.parameters()))


def test_the_scale_grows_after_its_interval(member: Member, problem: Problem) -> None:
    net, batches = problem()
    scaler = make_scaler(growth_interval=3)
    optimizer = member(net.parameters(), partial(SGD, lr=0.01, momentum=0.9), scaler=scaler)
    for x, y in batches[:3]:
        optimizer.step(lambda x=x, y=y: F.mse_loss(net(x), y))
    assert scaler.get_scale() == 2048


def test_a_disabled_scaler_is_none(member: Member, problem: Problem) -> None:
    net, [(x, y), *_] = problem()
    optimizer = member(
        net.parameters(), partial(SGD, lr=0.01, momentum=0.9), scaler=torch.amp.GradScaler("cpu", enabled=False)
    )
    optimizer.step(lambda: F.mse_loss(net(x), y))
    assert optimizer.scaler is None


def test_a_closure_that_ran_backward_is_refused_with_a_scaler(member: Member, problem: Problem) -> None:
    net, [(x, y), *_] = problem()

    def closure() -> Tensor:
        loss = F.mse_loss(net(x), y)
        loss.backward()
        return loss

    with pytest.raises(UsageError, match="ran backward itself, so its gradients are not scaled; return the loss"):
        member(net.parameters(), partial(SGD, lr=0.01, momentum=0.9), scaler=make_scaler()).step(closure)


def test_the_scalers_state_travels_with_the_optimizers(member: Member, problem: Problem) -> None:
    net, batches = problem()
    optimizer = member(net.parameters(), partial(SGD, lr=0.01, momentum=0.9), scaler=make_scaler(growth_interval=2))
    for x, y in batches[:5]:
        optimizer.step(lambda x=x, y=y: F.mse_loss(net(x), y))
    other = member(net.parameters(), partial(SGD, lr=0.01, momentum=0.9), scaler=make_scaler(growth_interval=2))
    other.load_state_dict(optimizer.state_dict())
    assert other.scaler is not None
    assert other.scaler.state_dict() == optimizer.scaler.state_dict()
    assert other.scaler.get_scale() == 4096
