"""Learning rate schedule of a run, in epochs or minutes."""

from dataclasses import dataclass
from typing import cast

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from uumamba.config.bind import Part, supply
from uumamba.runtime.errors import require
from uumamba.runtime.options import NonNegative, NonNegativeInt, Positive, check_options
from uumamba.training.budget import Budget
from uumamba.training.schedule import POWER


@check_options
@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """Options of a run's schedule in addition to its constructor's.

    Args:
        power: exponent of the decay, for ``poly`` and ``budget``.
        warmup_epochs: number of first epochs, over which the rate rises linearly; at most half of them.
        minutes: for ``budget``: schedule over this time, after which training ends.
    """

    power: NonNegative = POWER
    warmup_epochs: NonNegativeInt = 0
    minutes: Positive | None = None


def check_minutes(part: Part) -> None:
    """Raise if a budget has no minutes, or another schedule has some."""
    require(
        (part.name == "budget") == (part.minutes is not None),
        "minutes",
        got=part.minutes,
        expected="a number for name budget, null for other names",
        fix="set schedule={name: budget, minutes: 25}, or leave minutes out",
    )


def build_budget(part: Part) -> Budget | None:
    """Build the time budget; None without ``minutes``."""
    return None if part.minutes is None else Budget(part.minutes)


def build_schedule(
    part: Part, optimizer: Optimizer, *, epochs: int, batches_per_epoch: int, budget: Budget | None = None
) -> LRScheduler:
    """Build the schedule of a training of at most ``epochs``.

    The warm-up takes at most half of the steps, so that a training shortened for a try starts.
    """
    total_steps = epochs * batches_per_epoch
    made = supply(
        part.bind(),
        optimizer=optimizer,
        total_steps=total_steps,
        warmup_steps=min(part.warmup_epochs * batches_per_epoch, total_steps // 2),
        budget=budget or build_budget(part),
    )
    return cast(LRScheduler, made)
