"""Learning rates at points that can be calculated by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler

from uumamba.optim import SAM
from uumamba.training import constant, cosine, poly


def rates(make: Callable[..., LRScheduler], steps: int, **options: Any) -> list[float]:
    """List the rate of each step and after the last, from 2."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = SAM([weight], lambda params: torch.optim.SGD(params, lr=2.0))
    schedule = make(optimizer, **options)
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step(lambda: weight.sum())
        schedule.step()
        found.append(optimizer.base.param_groups[0]["lr"])
    return found


def test_poly_decays_from_the_rate_to_zero_and_stays_there() -> None:
    found = rates(poly, steps=6, total_steps=4, power=2.0)
    assert found == pytest.approx([2.0, 2 * 0.75**2, 2 * 0.5**2, 2 * 0.25**2, 0.0, 0.0, 0.0])
    assert rates(poly, steps=3, total_steps=4, power=0.0) == [2.0] * 4


def test_cosine_has_half_the_rate_at_half_the_steps() -> None:
    found = rates(cosine, steps=5, total_steps=4)
    assert found[0] == 2.0
    assert found[2] == pytest.approx(1.0)
    assert found[4:] == pytest.approx([0.0, 0.0])


@pytest.mark.parametrize("make", [poly, cosine, constant])
def test_the_warm_up_is_linear(make: Callable[..., LRScheduler]) -> None:
    assert rates(make, steps=4, total_steps=9, warmup_steps=4) == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


@pytest.mark.parametrize(
    ("total", "warmup", "key", "got"),
    [(0, 0, "total_steps", 0), (5, 5, "warmup_steps", 5), (5, -1, "warmup_steps", -1)],
)
def test_a_schedule_without_steps_is_refused(total: int, warmup: int, key: str, got: int, refused: Any) -> None:
    with refused(key, got=got):
        rates(poly, steps=1, total_steps=total, warmup_steps=warmup)
