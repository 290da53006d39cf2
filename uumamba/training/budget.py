"""A training that ends in a stated time, whatever the device and however many calls it takes."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic

MARGIN = 1.25
"""The last validation and checkpoint may take so many times as long as the longest so far."""

UNKNOWN_SHARE = 0.05
"""Of the time, kept for the last validation and checkpoint until one was measured."""


class Budget:
    """The time that a training may take in all, in seconds of a clock that only goes forward.

    Counted is the time between :meth:`begin` and now, and before it what earlier calls used up to their last
    checkpoint: training, validation and saving, but not the start of a program. Enough is kept for a last validation
    and checkpoint: 1.25 times the longest so far, 5 % of the whole before the first one is done.

    Args:
        minutes: in all; infinite for none.
        clock: seconds.

    Raises:
        ValueError: there is no time.

    Example:
        >>> seconds = iter([100.0, 130.0, 157.0])
        >>> budget = Budget(1.0, clock=lambda: next(seconds))
        >>> budget.begin()
        >>> budget.share, budget.is_over     # 30 of 57 seconds, 57 of 57
        (0.5263157894736842, True)
    """

    def __init__(self, minutes: float = math.inf, *, clock: Callable[[], float] = monotonic) -> None:
        if not minutes > 0:
            raise ValueError(f"a budget must be more than 0 minutes, got {minutes}")
        self.total_s = 60.0 * minutes
        self.longest_s: dict[str, float] = {}
        self._clock = clock
        self._zero: float | None = None

    def begin(self, *, used_s: float = 0.0, longest_s: Mapping[str, float] | None = None) -> None:
        """The clock runs from now on.

        Args:
            used_s: by earlier calls.
            longest_s: what they had in ``longest_s``.
        """
        self._zero, self.longest_s = self._clock() - used_s, dict(longest_s or {})

    @property
    def is_limited(self) -> bool:
        """Whether there is an end."""
        return math.isfinite(self.total_s)

    @property
    def used_s(self) -> float:
        """Seconds used so far, 0 before it began."""
        return 0.0 if self._zero is None else self._clock() - self._zero

    @property
    def closing_s(self) -> float:
        """Seconds kept for the last validation and checkpoint."""
        known = "validation" in self.longest_s
        return MARGIN * sum(self.longest_s.values()) if known else UNKNOWN_SHARE * self.total_s

    @property
    def for_steps_s(self) -> float:
        """What there is for all but the last validation and checkpoint; never quite 0."""
        return max(self.total_s - self.closing_s, 1e-9) if self.is_limited else math.inf

    @property
    def share(self) -> float:
        """How much of the time for steps is used, from 0 to 1."""
        return min(1.0, self.used_s / self.for_steps_s)

    @property
    def is_over(self) -> bool:
        """Whether it is time for the last validation."""
        return self.used_s >= self.for_steps_s

    @property
    def left_s(self) -> float:
        """Seconds until the end."""
        return max(0.0, self.total_s - self.used_s)

    def validates_now(self, *, due: bool) -> bool:
        """Whether an epoch ends with a validation.

        The last one does, and under a limit the first, so that it is known how long that takes; one that is ``due``
        does not where the last would no longer fit behind it.
        """
        if not self.is_limited:
            return due
        if self.is_over or "validation" not in self.longest_s:
            return True
        return due and self.used_s + self.closing_s < self.for_steps_s

    @contextmanager
    def taking(self, part: str) -> Iterator[None]:
        """Around a validation or a checkpoint, of which the longest of its kind counts."""
        began = self.used_s
        yield
        self.longest_s[part] = max(self.longest_s.get(part, 0.0), self.used_s - began)
