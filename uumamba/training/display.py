"""What a person sees of a run: a bar on a terminal, one line an epoch in a log."""

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from uumamba.training.budget import Budget


class Display(Protocol):
    """Where a run tells how far it is; a context manager."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End, whatever happened."""

    def begin(self, *, epochs: int, done: int, budget: Budget | None = None) -> None:
        """Training goes on after ``done`` epochs, for so many or as long as the budget allows."""

    def step(self) -> None:
        """One more step is done."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch is done, with this row of numbers."""

    def say(self, sentence: str) -> None:
        """Something a person should know."""


def make_display(progress: bool | None, log: Callable[[str], None] | None) -> Display:
    """A bar where ``progress`` is true, or is None and stderr is a terminal; otherwise lines to ``log``."""
    if sys.stderr.isatty() if progress is None else progress:
        return BarDisplay()
    return LineDisplay(log or to_stderr)


def to_stderr(sentence: str) -> None:
    """Print at once, also into a file."""
    print(sentence, file=sys.stderr, flush=True)


def silent(sentence: str) -> None:
    """Say nothing: another process of the group does."""


class LineDisplay:
    """One line an epoch.

    Example:
        >>> with LineDisplay(print) as display:
        ...     display.begin(epochs=2, done=0)
        ...     display.epoch({"epoch": 1, "loss": 0.5, "dice": 0.8125, "lr": 0.01, "seconds": 2.0})
        epoch 2/2  loss 0.5000  dice 0.8125  lr 0.01  2 s
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self.say = log
        self._epochs, self._budget = 0, Budget()
        self._seconds: list[float] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to end."""

    def begin(self, *, epochs: int, done: int, budget: Budget | None = None) -> None:
        """Training goes on after ``done`` epochs."""
        self._epochs, self._budget = epochs, budget or self._budget
        if done:
            self.say(f"going on after epoch {done}/{epochs}")

    def step(self) -> None:
        """A step leaves no line."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Print the epoch's line."""
        self._seconds.append(row["seconds"])
        left = self._epochs - row["epoch"] - 1
        words = [f"epoch {row['epoch'] + 1}/{self._epochs}", *_numbers(row), as_duration(row["seconds"])]
        if left and not self._budget.is_over:
            pace = sum(self._seconds) / len(self._seconds)
            words.append(f"left {as_duration(min(left * pace, self._budget.left_s))}")
        self.say("  ".join(words))


class BarDisplay:
    """A bar over the epochs, which moves with every step once the length of an epoch is known."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task("train", total=None, left="")
        self._epochs, self._steps, self._steps_an_epoch = 0, 0, 0
        self._budget = Budget()
        self._began, self._done_before = time.monotonic(), 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, *, epochs: int, done: int, budget: Budget | None = None) -> None:
        """Training goes on after ``done`` epochs."""
        self._budget = budget or self._budget
        self._epochs, self._began, self._done_before = epochs, time.monotonic(), done
        self._bar.update(self._task, total=epochs, completed=done, description=f"epoch {done + 1}/{epochs}")

    def step(self) -> None:
        """Move a step's share of an epoch."""
        self._steps += 1
        if self._steps < self._steps_an_epoch:
            self._bar.update(self._task, advance=1 / self._steps_an_epoch)
            self._tell_time_left()

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Show the epoch's numbers, and the next epoch's start."""
        self._steps_an_epoch, self._steps = self._steps, 0
        done = row["epoch"] + 1
        words = [f"epoch {min(done + 1, self._epochs)}/{self._epochs}", *_numbers(row)]
        self._bar.update(self._task, completed=done, description="  ".join(words))
        self._tell_time_left()

    def say(self, sentence: str) -> None:
        """Print above the bar."""
        self._bar.console.print(sentence, markup=False, highlight=False)

    def _tell_time_left(self) -> None:
        completed = self._bar.tasks[0].completed
        pace = (time.monotonic() - self._began) / max(completed - self._done_before, 1e-9)
        left_s = min(pace * (self._epochs - completed), self._budget.left_s)
        self._bar.update(self._task, left=f"left {as_duration(left_s)}")


def as_duration(seconds: float) -> str:
    """A duration to read, in the two largest units that matter.

    Example:
        >>> as_duration(59.4), as_duration(83), as_duration(7260)
        ('59 s', '1 min 23 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _numbers(row: Mapping[str, Any]) -> list[str]:
    formats = {"loss": "loss {:.4f}", "dice": "dice {:.4f}", "lr": "lr {:.3g}", "data_wait": "data wait {:.1%}"}
    return [text.format(row[key]) for key, text in formats.items() if row.get(key) is not None]
