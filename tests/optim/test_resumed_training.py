"""Loaded states, copies and schedulers of every member."""

import copy
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer, lr_scheduler

from tests.optim.shared_parts import MOMENTUM
from uumamba.optim import SAM


def two_groups(net: nn.Module) -> list[dict[str, Any]]:
    first = {"params": [*net[0].parameters(), *net[1].parameters()]}
    return [first, {"params": net[3].parameters(), "lr": 0.02, "perturb": False}]


def test_stopped_and_loaded_equals_never_stopped(member: str, base: Callable[..., Optimizer], training: Any) -> None:
    def build() -> tuple[Any, ...]:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=2)
        run = training(member, base, groups=two_groups, max_grad_norm=1.0, scaler=scaler)
        return run, run.net, run.optimizer, lr_scheduler.LambdaLR(run.optimizer, lambda step: 0.95**step), run.objective

    def go_on(run: Any, schedule: Any, batches: Any) -> None:
        for batch in batches:
            run.train([batch])
            schedule.step()

    whole, resumed = build(), build()
    batches = whole[0].batches(8)
    go_on(whole[0], whole[3], batches[:5])
    whole[2].skipped_steps = 3
    saved = [copy.deepcopy(part.state_dict()) for part in whole[1:] if part is not None]
    for part, state in zip(resumed[1:], saved, strict=False):
        part.load_state_dict(state)
    for part in (whole, resumed):
        go_on(part[0], part[3], batches[5:])
    assert torch.equal(whole[0].weights, resumed[0].weights)
    optimizer = resumed[2]
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.param_groups[0]["lr"] == whole[2].param_groups[0]["lr"]
    assert optimizer.skipped_steps == 3
    assert optimizer.scaler.state_dict() == whole[2].scaler.state_dict()
    assert optimizer.scaler.get_scale() == 2.0**5
    layout = ["state", "param_groups", "base", "scaler", "skipped_steps", "numbers", "optimizer"]
    assert list(optimizer.state_dict()) == layout


def test_a_copy_trains_on_as_the_original_and_apart_from_it(member: str, training: Any) -> None:
    for copied in (copy.deepcopy, lambda parts: pickle.loads(pickle.dumps(parts))):
        if copied is not copy.deepcopy and member != "Plain":
            break  # rules hold functions of functions, which no pickle takes
        run = training(member)
        lr_scheduler.StepLR(run.optimizer, 2)  # torch's schedulers put a method of the original into the optimizer
        batches = run.batches(6)
        run.train(batches[:3])
        twin = copy.copy(run)
        twin.seen = []
        twin.net, twin.optimizer, twin.objective = copied((run.net, run.optimizer, run.objective))
        before = run.weights
        twin.train(batches[3:])
        assert torch.equal(run.weights, before)
        run.train(batches[3:])
        assert torch.equal(run.weights, twin.weights)
        assert not torch.equal(run.weights, before)
        assert twin.optimizer.param_groups is twin.optimizer.base.param_groups


def test_schedulers_attach_without_a_warning(member: str, training: Any) -> None:
    for schedule in (
        partial(lr_scheduler.LambdaLR, lr_lambda=lambda step: 0.9**step),
        partial(lr_scheduler.CosineAnnealingLR, T_max=10),
        partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=10),
        partial(lr_scheduler.PolynomialLR, total_iters=10, power=0.9),
    ):
        run = training(member)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scheduler = schedule(run.optimizer)
            for batch in run.batches(2):
                run.train([batch])
                scheduler.step()
        assert run.optimizer.base.param_groups[0]["lr"] == scheduler.get_last_lr()[0] != 0.05


def test_a_state_of_a_torch_optimizer_is_rejected(refused: Any) -> None:
    weight = nn.Parameter(torch.ones(2))
    with refused("state_dict", got="keys state, param_groups"):
        SAM([weight], MOMENTUM).load_state_dict(SGD([weight], lr=0.1).state_dict())
