"""A copy of an optimizer with its network trains on as the original would, and apart from it."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import StepLR

from uumamba.optim import TRAM, SharpnessAware

Problem = Callable[..., tuple[nn.Module, list[tuple[Tensor, Tensor]]]]
Pair = tuple[nn.Module, SharpnessAware]
MOMENTUM = partial(SGD, lr=0.05, momentum=0.9)


def train(pair: Pair, batches: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The weights after a step on each batch; outputs are told as well, which TRAM needs."""
    net, optimizer = pair

    def closure(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        outputs = net(x)
        return F.mse_loss(outputs, y), outputs

    for x, y in batches:
        optimizer.step(partial(closure, x, y))
    return [param.detach().clone() for param in net.parameters()]


def check(pair: Pair, batches: list[tuple[Tensor, Tensor]], copied: Callable[[Pair], Pair]) -> None:
    train(pair, batches[:4])
    twin = copied(pair)
    before = [param.detach().clone() for param in pair[0].parameters()]
    of_twin = train(twin, batches[4:])
    assert all(torch.equal(param, kept) for param, kept in zip(pair[0].parameters(), before, strict=True))
    of_pair = train(pair, batches[4:])
    assert all(torch.equal(one, other) for one, other in zip(of_pair, of_twin, strict=True))
    assert any(not torch.equal(one, other) for one, other in zip(of_pair, before, strict=True))
    assert twin[1].param_groups is twin[1].base.param_groups


@pytest.mark.parametrize("base", [MOMENTUM, partial(AdamW, lr=0.01)], ids=["SGD", "AdamW"])
def test_a_copy_of_a_member_trains_on_as_the_member(member: type[SharpnessAware], base: Any, problem: Problem) -> None:
    net, batches = problem(batches=8)
    check((net, member(net.parameters(), base, net=net, max_grad_norm=1.0)), batches, copy.deepcopy)


@pytest.mark.parametrize("trust", ["previous", "initial", "noise", "fisher"])
def test_a_copy_of_tram_trains_on_as_tram(trust: Any, problem: Problem) -> None:
    net, batches = problem(batches=8)
    check((net, TRAM(net.parameters(), MOMENTUM, trust=trust, net=net)), batches, copy.deepcopy)


def test_a_copy_under_a_scheduler_steps_itself(problem: Problem) -> None:
    net, batches = problem(batches=8)
    pair = net, SharpnessAware(net.parameters(), MOMENTUM)
    StepLR(pair[1], 2)  # torch's schedulers put a method of the original into the optimizer
    check(pair, batches, copy.deepcopy)


def test_what_goes_to_another_process_trains_on_there(problem: Problem) -> None:
    net, batches = problem(batches=8)
    pair = net, SharpnessAware(net.parameters(), MOMENTUM)
    check(pair, batches, lambda each: pickle.loads(pickle.dumps(each)))
