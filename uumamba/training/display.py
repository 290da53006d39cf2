"""Progress of a run: a bar on a terminal, one line an epoch in a log."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from uumamba.training.budget import Budget


def make_display(progress: bool | None, log: Callable[[str], None] | None) -> "Display":
    """Return a bar if ``progress`` is true, or is None and stderr is a terminal; otherwise lines to ``log``."""
    if sys.stderr.isatty() if progress is None else progress:
        return BarDisplay()
    return LineDisplay(log or to_stderr)


def to_stderr(sentence: str) -> None:
    """Print at once, also into a file."""
    print(sentence, file=sys.stderr, flush=True)


class LineDisplay:
    """One line an epoch.

    Example:
        >>> with LineDisplay(print) as display:
        ...     display.begin(epochs=2, done=0, budget=Budget())
        ...     display.epoch({"epoch": 1, "loss": 0.5, "dice": 0.8125, "lr": 0.01, "seconds": 2.0})
        epoch 2/2  loss 0.5000  dice 0.8125  lr 0.01  2 s
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self.say = log
        self._seconds: list[float] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def begin(self, *, epochs: int, done: int, budget: Budget) -> None:
        """Start after ``done`` epochs, for ``epochs`` in all or as long as the budget allows."""
        self._epochs, self._budget = epochs, budget
        if done:
            self.say(f"going on after epoch {done}/{epochs}")

    def step(self) -> None:
        """Do nothing after a step."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Print the line of an epoch with these numbers."""
        self._seconds.append(row["seconds"])
        left = self._epochs - row["epoch"] - 1
        words = [f"epoch {row['epoch'] + 1}/{self._epochs}", *_numbers(row), format_duration(row["seconds"])]
        if left and not self._budget.is_over:
            pace = sum(self._seconds) / len(self._seconds)
            words.append(f"left {format_duration(min(left * pace, self._budget.left_s))}")
        self.say("  ".join(words))


class BarDisplay:
    """Bar over the epochs, which moves with every step once the length of an epoch is known."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        left = TextColumn("{task.fields[left]}")
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), left)
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task("train", total=None, left="")
        self._steps, self._steps_an_epoch = 0, 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, *, epochs: int, done: int, budget: Budget) -> None:
        """Start after ``done`` epochs."""
        self._epochs, self._done_before, self._budget, self._began = epochs, done, budget, time.monotonic()
        self._bar.update(self._task, total=epochs, completed=done, description=f"epoch {done + 1}/{epochs}")

    def step(self) -> None:
        """Move by a step's share of an epoch."""
        self._steps += 1
        if self._steps < self._steps_an_epoch:
            self._bar.update(self._task, advance=1 / self._steps_an_epoch)
            self._show_time_left()

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Show the numbers of an epoch and the start of the next."""
        self._steps_an_epoch, self._steps = self._steps, 0
        done = row["epoch"] + 1
        words = [f"epoch {min(done + 1, self._epochs)}/{self._epochs}", *_numbers(row)]
        self._bar.update(self._task, completed=done, description="  ".join(words))
        self._show_time_left()

    def say(self, sentence: str) -> None:
        """Print above the bar."""
        self._bar.console.print(sentence, markup=False, highlight=False)

    def _show_time_left(self) -> None:
        completed = self._bar.tasks[0].completed
        pace = (time.monotonic() - self._began) / max(completed - self._done_before, 1e-9)
        left_s = min(pace * (self._epochs - completed), self._budget.left_s)
        self._bar.update(self._task, left=f"left {format_duration(left_s)}")


Display = LineDisplay | BarDisplay


def format_duration(seconds: float) -> str:
    """Format a duration in the two largest units that matter.

    Example:
        >>> format_duration(59.4), format_duration(83), format_duration(7260)
        ('59 s', '1 min 23 s', '2 h 1 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _numbers(row: Mapping[str, Any]) -> list[str]:
    formats = {"loss": "loss {:.4f}", "dice": "dice {:.4f}", "lr": "lr {:.3g}", "data_wait": "data wait {:.1%}"}
    return [text.format(row[key]) for key, text in formats.items() if row.get(key) is not None]
