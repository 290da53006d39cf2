"""Members beside pytorch_optimizer's, and those that are SAM at an end of their range."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD, Adam, AdamW

from uumamba.optim import (
    ASAM,
    GSAM,
    SAM,
    AdaptiveTrigger,
    FriendlySAM,
    LookSAM,
    Rule,
    SharpnessAware,
)
from uumamba.optim.sam import along_gradient

Problem = Callable[..., tuple[nn.Module, list[tuple[Tensor, Tensor]]]]
MOMENTUM = {"lr": 0.05, "momentum": 0.9}


@pytest.mark.parametrize(
    ("ours", "theirs", "base", "options"),
    [
        (partial(SAM, rho=0.1), partial(pytorch_optimizer.SAM, rho=0.1), SGD, MOMENTUM | {"weight_decay": 1e-3}),
        (partial(SAM, rho=0.1), partial(pytorch_optimizer.SAM, rho=0.1), AdamW, {"lr": 0.01, "weight_decay": 0.1}),
        (
            partial(ASAM, rho=0.5, eta=0.0, normalize_bias=True),
            partial(pytorch_optimizer.SAM, rho=0.5, adaptive=True),
            SGD,
            MOMENTUM,
        ),
        (
            partial(FriendlySAM, rho=0.2, sigma=1.0, lam=0.9),
            partial(pytorch_optimizer.FriendlySAM, rho=0.2, sigma=1.0, lmbda=0.9),
            SGD,
            MOMENTUM,
        ),
        (
            partial(FriendlySAM, rho=0.2, sigma=0.5, lam=0.6),
            partial(pytorch_optimizer.FriendlySAM, rho=0.2, sigma=0.5, lmbda=0.6),
            SGD,
            MOMENTUM,
        ),
    ],
    ids=["SAM over SGD", "SAM over AdamW", "ASAM", "FriendlySAM", "FriendlySAM, half of it taken off"],
)
def test_twenty_steps_equal_pytorch_optimizers(
    problem: Problem, ours: Any, theirs: Any, base: Any, options: dict[str, float]
) -> None:
    net, batches = problem(dtype=torch.float64)
    other, _ = problem(dtype=torch.float64)
    mine, reference = ours(net.parameters(), partial(base, **options)), theirs(other.parameters(), base, **options)
    for x, y in batches[:20]:
        mine.step(lambda x=x, y=y: F.mse_loss(net(x), y))

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            reference.zero_grad()
            loss = F.mse_loss(other(x), y)
            loss.backward()
            return loss

        closure()
        reference.step(closure)
    for one, another in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, another, rtol=1e-6, atol=1e-8)  # its norm is float32


ALWAYS = Rule(climb=along_gradient, due=AdaptiveTrigger(total_steps=5, start=-1e9, end=-1e9))


@pytest.mark.parametrize(
    "make",
    [
        partial(GSAM, rho=0.3, alpha=0.0),
        partial(FriendlySAM, rho=0.3, sigma=0.0),
        partial(LookSAM, rho=0.3, k=1),
        partial(SharpnessAware, rule=ALWAYS, group_defaults={"rho": 0.3}),
    ],
    ids=["GSAM, alpha 0", "FriendlySAM, sigma 0", "LookSAM, k 1", "a trigger that is always due"],
)
def test_at_an_end_of_its_range_a_member_is_sam_bit_for_bit(problem: Problem, make: Any) -> None:
    results = []
    for each in (partial(SAM, rho=0.3), make):
        net, batches = problem()
        optimizer = each(net.parameters(), partial(Adam, lr=0.01))
        for x, y in batches[:5]:
            optimizer.step(lambda x=x, y=y, net=net: F.mse_loss(net(x), y))
        results.append(parameters_to_vector(net.parameters()))
    assert torch.equal(*results)
