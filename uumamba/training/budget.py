"""Time budget of a run, and its due checkpoints."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch.optim import Optimizer

from uumamba.runtime.errors import require
from uumamba.runtime.ranks import Ranks

# Time reserved for the last validation and checkpoint: multiple of the longest so far, or share of the budget.
MARGIN = 1.25
UNKNOWN_SHARE = 0.05


class Budget:
    """Total time of a training, in seconds of a monotonic clock.

    The budget counts the time since :meth:`begin`, plus the time that earlier calls used up to their last checkpoint:
    training, validation and saving, but not the start of a program. Time for the last validation and checkpoint is
    reserved: 1.25 times the longest so far, or 5 % of the total before the first one is done.

    Args:
        minutes: total time; infinite for no limit.
        clock: function that returns the current time in seconds.

    Raises:
        UsageError: ``minutes`` is not above 0.

    Example:
        >>> seconds = iter([100.0, 130.0, 157.0])
        >>> budget = Budget(1.0, clock=lambda: next(seconds))
        >>> budget.begin()
        >>> budget.share, budget.is_over     # 30 of 57 seconds, 57 of 57
        (0.5263157894736842, True)
    """

    def __init__(self, minutes: float = math.inf, *, clock: Callable[[], float] = time.monotonic) -> None:
        require(minutes > 0, "minutes", got=minutes, expected="a number above 0")
        self.total_s = 60.0 * minutes
        self.longest_s: dict[str, float] = {}
        self._clock = clock
        self._zero: float | None = None

    def begin(self, *, used_s: float = 0.0, longest_s: Mapping[str, float] | None = None) -> None:
        """Start the clock.

        Args:
            used_s: time that earlier calls used.
            longest_s: their ``longest_s``.
        """
        self._zero, self.longest_s = self._clock() - used_s, dict(longest_s or {})

    @property
    def is_limited(self) -> bool:
        """Return whether the budget is finite."""
        return math.isfinite(self.total_s)

    @property
    def used_s(self) -> float:
        """Seconds used so far; 0 before the start."""
        return 0.0 if self._zero is None else self._clock() - self._zero

    @property
    def left_s(self) -> float:
        """Seconds until the end."""
        return max(0.0, self.total_s - self.used_s)

    @property
    def closing_s(self) -> float:
        """Seconds reserved for the last validation and checkpoint."""
        is_measured = "validation" in self.longest_s
        return MARGIN * sum(self.longest_s.values()) if is_measured else UNKNOWN_SHARE * self.total_s

    @property
    def for_steps_s(self) -> float:
        """Seconds before the last validation and checkpoint; at least 1e-9."""
        return max(self.total_s - self.closing_s, 1e-9) if self.is_limited else math.inf

    @property
    def share(self) -> float:
        """Used share of the time for steps, from 0 to 1."""
        return min(1.0, self.used_s / self.for_steps_s)

    @property
    def is_over(self) -> bool:
        """Return whether the last validation is due."""
        return self.used_s >= self.for_steps_s

    def needs_validation(self, *, due: bool) -> bool:
        """Decide whether an epoch ends with a validation.

        Under a limit the last epoch does, and the first, so that the duration is known. A ``due`` validation in between
        is skipped if no time would be left for the last one.
        """
        if not self.is_limited:
            return due
        is_first = "validation" not in self.longest_s
        return self.is_over or is_first or (due and self.used_s + self.closing_s < self.for_steps_s)

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Time a validation or a checkpoint and store the longest duration."""
        began = self.used_s
        yield
        self.longest_s[part] = max(self.longest_s.get(part, 0.0), self.used_s - began)


class Clock:
    """Due checkpoints and end of the budget, equal on all ranks.

    Each rank has its own clock, so one due on any rank is due on all. The learning rates, which a budget derives from
    the time, are those of rank 0.

    Args:
        budget: budget of the run.
        ranks: the processes that train together.
        optimizer: its learning rates follow the budget.
        save_every_minutes: time between two checkpoints; None never makes a checkpoint due.
    """

    def __init__(self, budget: Budget, ranks: Ranks, optimizer: Optimizer, *, save_every_minutes: float | None) -> None:
        self.is_over = self.save_is_due = False
        self._budget = budget
        self._ranks = ranks
        self._optimizer = optimizer
        self._seconds_between_saves = math.inf if save_every_minutes is None else 60 * save_every_minutes
        self.note_save()

    def note_save(self) -> None:
        """Restart the time until the next checkpoint."""
        self._saved = time.monotonic()

    def update(self) -> None:
        """Read the clocks of all ranks; a collective call."""
        is_due = time.monotonic() - self._saved >= self._seconds_between_saves
        groups = self._optimizer.param_groups
        rates = [float(group["lr"]) * self._ranks.is_rank_zero for group in groups]
        over, due, *rates = self._ranks.reduce_sum([float(self._budget.is_over), float(is_due), *rates])
        self.is_over, self.save_is_due = over > 0, due > 0
        if self._budget.is_limited and self._ranks.count > 1:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate
