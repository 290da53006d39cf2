"""Learning rates at the points where they can be worked out by hand."""

from collections.abc import Callable

import pytest
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from uumamba.optim import SAM
from uumamba.training import constant, cosine, make_schedule, poly


def rates(make: Callable[[Optimizer], LRScheduler], steps: int, lr: float = 2.0) -> list[float]:
    """The rate of every step, and the one after the last."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = SAM([weight], lambda params: torch.optim.SGD(params, lr=lr))
    schedule = make(optimizer)
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step(lambda: weight.sum())
        schedule.step()
        found.append(optimizer.base.param_groups[0]["lr"])
    return found


def test_poly_falls_from_the_rate_to_zero_and_stays() -> None:
    found = rates(lambda optimizer: poly(optimizer, total_steps=4, power=2.0), steps=6)
    assert found == pytest.approx([2.0, 2 * 0.75**2, 2 * 0.5**2, 2 * 0.25**2, 0.0, 0.0, 0.0])


def test_poly_with_power_zero_is_constant_before_the_end() -> None:
    assert rates(lambda optimizer: poly(optimizer, total_steps=4, power=0.0), steps=3) == [2.0] * 4


def test_cosine_passes_half_the_rate_half_way() -> None:
    found = rates(lambda optimizer: cosine(optimizer, total_steps=4), steps=5)
    assert found[0] == 2.0
    assert found[2] == pytest.approx(1.0)
    assert found[4:] == pytest.approx([0.0, 0.0])


@pytest.mark.parametrize("make", [poly, cosine, constant])
def test_warm_up_rises_in_a_line_to_the_rate(make: Callable[..., LRScheduler]) -> None:
    found = rates(lambda optimizer: make(optimizer, total_steps=9, warmup_steps=4), steps=4)
    assert found == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


def test_a_schedule_by_name_is_the_schedule() -> None:
    for name, make in {"poly": poly, "cosine": cosine, "constant": constant}.items():
        by_name = rates(lambda optimizer, name=name: make_schedule(optimizer, name=name, total_steps=5), steps=5)
        assert by_name == rates(lambda optimizer, make=make: make(optimizer, total_steps=5), steps=5)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no schedule 'step'; choose poly, cosine or constant"):
        rates(lambda optimizer: make_schedule(optimizer, name="step", total_steps=5), steps=1)


@pytest.mark.parametrize(("total", "warmup"), [(0, 0), (5, 5), (5, -1)])
def test_a_schedule_without_steps_is_refused(total: int, warmup: int) -> None:
    with pytest.raises(ValueError, match="0 <= warmup_steps < total_steps"):
        rates(lambda optimizer: poly(optimizer, total_steps=total, warmup_steps=warmup), steps=1)
