"""Learning rate schedules, as factors of each group's learning rate."""

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from uumamba.runtime.errors import require
from uumamba.runtime.options import NonNegative, NonNegativeInt, PositiveInt, check_options
from uumamba.training.budget import Budget

POWER = 0.9  # nnU-Net's exponent
WARMUP_SHARE = 0.1  # of a budget's time, after which a warm-up ends at the latest


@check_options
def poly(
    optimizer: Optimizer, total_steps: PositiveInt, power: NonNegative = POWER, warmup_steps: NonNegativeInt = 0
) -> LambdaLR:
    r"""Polynomial decay to 0, stepped once per optimizer step.

    .. math:: \eta_t = \eta_0 \left(1 - \frac{t - w}{T - w}\right)^p \; (t \ge w), \qquad
              \eta_t = \eta_0 \frac{t + 1}{w} \; (t < w)

    with T ``total_steps``, w ``warmup_steps`` and p ``power``. Beyond T the rate stays 0.

    Args:
        optimizer: an optimizer of uumamba.optim or of torch; the factor applies to every parameter group.
        total_steps: steps of the run, including the warm-up.
        power: exponent of the decay; 1 is linear.
        warmup_steps: number of first steps, over which the rate rises linearly to the group's learning rate.

    Raises:
        UsageError: there are no steps, or the warm-up leaves none.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> schedule = poly(optimizer, total_steps=4, power=1.0)
        >>> rates = []
        >>> for _ in range(4):
        ...     rates.append(optimizer.param_groups[0]["lr"])
        ...     optimizer.step()
        ...     schedule.step()
        >>> rates
        [1.0, 0.75, 0.5, 0.25]

    References:
        Chen et al., *DeepLab*, 2017, arXiv:1606.00915; nnU-Net's default with power 0.9.
        Differs from the paper: the warm-up, off by default.
    """
    return _make(optimizer, total_steps, warmup_steps, lambda share: (1.0 - share) ** power)


@check_options
def cosine(optimizer: Optimizer, total_steps: PositiveInt, warmup_steps: NonNegativeInt = 0) -> LambdaLR:
    r"""Cosine decay to 0, stepped once per optimizer step.

    .. math:: \eta_t = \frac{\eta_0}{2} \left(1 + \cos\left(\pi \frac{t - w}{T - w}\right)\right)

    Arguments, warm-up, edge cases and errors are those of :func:`poly`.

    References:
        Loshchilov & Hutter, *SGDR*, ICLR 2017, arXiv:1608.03983. Differs from the paper: no restarts.
    """
    return _make(optimizer, total_steps, warmup_steps, lambda share: 0.5 * (1.0 + math.cos(math.pi * share)))


@check_options
def constant(optimizer: Optimizer, total_steps: PositiveInt, warmup_steps: NonNegativeInt = 0) -> LambdaLR:
    """Constant rate of each group, after the warm-up of :func:`poly`.

    The rate stays constant beyond ``total_steps``.
    """
    return _make(optimizer, total_steps, warmup_steps, lambda share: 1.0)


class BudgetSchedule(LambdaLR):
    """Learning rate schedule over the time of a budget.

    A trainer with this schedule ends with the budget.

    Args:
        optimizer: as for torch's ``LambdaLR``.
        factor: factor of the learning rates at a step.
        budget: the budget; its state is not part of the schedule's.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float], budget: Budget) -> None:
        super().__init__(optimizer, factor)
        self.budget = budget

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state, without the budget."""
        return {name: value for name, value in super().state_dict().items() if name != "budget"}


@check_options
def by_budget(
    optimizer: Optimizer,
    budget: Budget,
    total_steps: PositiveInt,
    power: NonNegative = POWER,
    warmup_steps: NonNegativeInt = 0,
) -> BudgetSchedule:
    r"""Polynomial decay over the time of a budget.

    .. math:: \eta = \eta_0 (1 - s)^p \min\left(1, \max\left(\frac{t + 1}{w}, \frac{s}{0.1}\right)\right), \qquad
              s = \max\left(\text{share of the time used}, \frac{t}{T}\right)

    The rate reaches 0 at the end of the time for steps or at step T ``total_steps``, whichever is first. A warm-up of
    w ``warmup_steps`` ends at the latest after a tenth of that time. Measured time differs between runs with equal
    seeds, and so do their rates.

    Raises:
        UsageError: there are no steps, or the warm-up leaves none.

    References:
        Li, Yumer & Ramanan, *Budgeted Training*, ICLR 2020, arXiv:1905.04753.
        Differs from the paper: the budget is time, not epochs; the power; 1 is the paper's linear decay.
    """
    _check_steps(total_steps, warmup_steps)

    def factor(step: int) -> float:
        share = min(1.0, max(budget.share, step / total_steps))
        risen = min(1.0, max((step + 1) / warmup_steps, share / WARMUP_SHARE)) if warmup_steps else 1.0
        return risen * (1.0 - share) ** power

    return BudgetSchedule(optimizer, factor, budget)


def _make(optimizer: Optimizer, total_steps: int, warmup_steps: int, decay: Callable[[float], float]) -> LambdaLR:
    """Make a schedule of ``decay(share of the steps after the warm-up)``."""
    _check_steps(total_steps, warmup_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return decay(min(1.0, (step - warmup_steps) / (total_steps - warmup_steps)))

    return LambdaLR(optimizer, factor)


def _check_steps(total_steps: int, warmup_steps: int) -> None:
    require(
        warmup_steps < total_steps,
        "warmup_steps",
        got=warmup_steps,
        expected=f"fewer than total_steps, {total_steps}",
    )
