"""Relearning attack: fine-tuning on a few forget samples."""

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from uumamba.runtime.errors import require
from uumamba.runtime.network import bare_network
from uumamba.runtime.options import Batches, Positive, PositiveInt, check_options
from uumamba.runtime.seeds import key_to_seed, preserve_random_state
from uumamba.unlearning.cycled_batches import cycle_batches
from uumamba.unlearning.per_sample_loss import MeanLoss
from uumamba.unlearning.unlearning_step import Loss


@dataclass(frozen=True)
class RelearningRow:
    """Quality on the forget set after some steps of an attack.

    Attributes:
        steps: fine-tuning steps; 0 before the attack.
        rate: learning rate.
        quality: quality on the forget set; NaN from the step on whose loss is not finite.
    """

    steps: int
    rate: float
    quality: float


@dataclass(frozen=True)
class RelearningResult:
    """Table of an attack.

    Attributes:
        rows: one row per rate and budget, after one row before the attack.
    """

    rows: tuple[RelearningRow, ...]

    def strongest(self, budget: int) -> RelearningRow:
        """Return the row of the highest quality within a budget of steps.

        An attacker may stop earlier, so the quality never falls with the budget; 0 is before the attack.

        Raises:
            UsageError: the budget is negative, or no quality is a number.
        """
        rows = [row for row in self.rows if row.steps <= budget and not math.isnan(row.quality)]
        require(rows, "budget", got=budget, expected="a number of at least 0 with a quality that is no NaN")
        return max(rows, key=lambda row: row.quality)

    def needs_other_rates(self, budget: int) -> bool:
        """Return whether the strongest rate is the lowest or highest of several.

        A stronger attack may then lie outside the swept rates.
        """
        rates = sorted({row.rate for row in self.rows if row.steps})
        row = self.strongest(budget)
        return row.steps > 0 and len(rates) > 1 and row.rate in (rates[0], rates[-1])


@check_options
def relearning_attack(
    net: nn.Module,
    batches: Batches,
    quality: Callable[[nn.Module], float],
    *,
    optimizer: Callable[[list[nn.Parameter]], Optimizer],
    budgets: Sequence[PositiveInt],
    rates: Sequence[Positive],
    loss: Loss | None = None,
    seed: int = 0,
) -> RelearningResult:
    """Fine-tune copies of a network on forget samples, at several learning rates.

    Each rate trains one copy for the largest budget and measures the quality at every budget, so there is no schedule.
    Batches come in the same order, and dropout in the same draws, for every rate. The network itself does not change.

    The attacker trains all parameters that require a gradient, in the network's modes: to attack frozen ones too, pass
    a copy after ``requires_grad_(True)``.

    Args:
        net: the network after unlearning.
        batches: the attacker's samples to forget, repeated as needed: a list, in a keyed random order, or an iterable.
        quality: measures a network on the forget set, such as its accuracy; higher is more success.
        optimizer: callable from parameters to an optimizer of torch or :mod:`uumamba.optim`; its ``lr`` is replaced.
        budgets: numbers of steps.
        rates: learning rates.
        loss: objective of the fine-tuning; None for :class:`MeanLoss`.
        seed: seed of the order and of dropout.

    Raises:
        UsageError: there is no batch, budget, rate or trainable parameter, or an option is out of range.

    Example:
        >>> from functools import partial
        >>> from uumamba.unlearning import mean_accuracy
        >>> net, batches = nn.Linear(2, 2), [(torch.eye(2), torch.tensor([0, 1]))]
        >>> adam = partial(torch.optim.Adam, lr=1.0)
        >>> result = relearning_attack(
        ...     net, batches, partial(mean_accuracy, batches=batches), optimizer=adam, budgets=[1, 30], rates=[0.1, 1.0]
        ... )
        >>> len(result.rows), result.strongest(30).quality
        (5, 1.0)

    References:
        Fan et al., *Towards LLM Unlearning Resilient to Relearning Attacks*, ICML 2025, arXiv:2502.05374.
        Differs from the paper: the learning rate is swept and the best one counts, where the paper uses one.
    """
    require(budgets, "budgets", got="no budget", expected="at least one number of steps")
    require(rates, "rates", got="no rate", expected="at least one learning rate")
    budgets = sorted(set(budgets))
    batches = batches if isinstance(batches, Sequence) else list(islice(batches, budgets[-1]))
    objective, rows = loss or MeanLoss(), [RelearningRow(0, 0.0, float(quality(net)))]
    devices = {param.device for param in net.parameters()}
    for rate in sorted(set(rates)):
        with preserve_random_state(devices):
            torch.manual_seed(key_to_seed(seed, "relearning, dropout"))
            order = cycle_batches(batches, seed, "batches")
            rows += _attack(deepcopy(bare_network(net)), order, quality, optimizer, budgets, rate, objective)
    return RelearningResult(tuple(rows))


def _attack(
    net: nn.Module,
    batches: Iterator[Any],
    quality: Callable[[nn.Module], float],
    make: Callable[[list[nn.Parameter]], Optimizer],
    budgets: Sequence[int],
    rate: float,
    loss: Loss,
) -> Iterator[RelearningRow]:
    """Train at one rate; yield the quality at every budget."""
    params = [param for param in net.parameters() if param.requires_grad]
    require(params, "net", got="no trainable parameter", expected="at least one with requires_grad=True")
    optimizer = make(params)
    for group in optimizer.param_groups:
        group["lr"] = rate
    is_finite = True
    for step in range(1, budgets[-1] + 1):
        is_finite = is_finite and _run_step(net, next(batches), optimizer, loss)
        if step in budgets:
            yield RelearningRow(step, rate, float(quality(net)) if is_finite else math.nan)


def _run_step(net: nn.Module, batch: Any, optimizer: Optimizer, loss: Loss) -> bool:
    """Run one step; return whether its loss was finite."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = loss(net, batch)
        value.backward()
        return value

    value: Tensor = optimizer.step(closure)  # type: ignore[assignment,arg-type]  # torch expects floats
    return bool(value.detach().isfinite())
