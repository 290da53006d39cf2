"""When a run has to save and when to end, by a clock that nobody can set, and for all ranks alike."""

import math
import time

from uumamba.optim import SharpnessAware
from uumamba.runtime.ranks import Ranks
from uumamba.training.budget import Budget


class Clock:
    """What the time says to a run: that a checkpoint is due, or that its budget is used.

    Ranks have clocks of their own, so they look together: what one's says holds for all, and the first one's learning
    rates do, which a budget takes from its time.

    Args:
        budget: of the run.
        ranks: the processes that train together.
        optimizer: whose learning rates follow the budget.
        save_every_minutes: None is never.
    """

    def __init__(
        self, budget: Budget, ranks: Ranks, optimizer: SharpnessAware, *, save_every_minutes: float | None
    ) -> None:
        self.is_over = self.save_is_due = False
        self._budget = budget
        self._ranks = ranks
        self._optimizer = optimizer
        self._seconds_between_saves = math.inf if save_every_minutes is None else 60 * save_every_minutes
        self._saved = time.monotonic()

    def note_save(self) -> None:
        """A checkpoint was written just now."""
        self._saved = time.monotonic()

    def look(self) -> None:
        """See what the time says; for all ranks at once."""
        is_due = time.monotonic() - self._saved >= self._seconds_between_saves
        groups = self._optimizer.param_groups
        rates = [float(group["lr"]) if self._ranks.first else 0.0 for group in groups]
        over, due, *rates = self._ranks.total([float(self._budget.is_over), float(is_due), *rates])
        self.is_over, self.save_is_due = over > 0, due > 0
        if self._budget.is_limited and self._ranks.count > 1:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate
