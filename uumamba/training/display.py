"""Progress display: a bar on a terminal, lines in a log."""

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from uumamba.training.budget import Budget


def make_display(progress: bool | None, log: Callable[[str], None] | None) -> "LineDisplay":
    """Make the display of a run.

    Args:
        progress: True for a bar, False for lines, None for a bar if stderr is a terminal.
        log: called with each line; stderr if None.
    """
    if sys.stderr.isatty() if progress is None else progress:
        return BarDisplay()
    return LineDisplay(log or to_stderr)


def to_stderr(sentence: str) -> None:
    """Print to stderr and flush, also if stderr is a file."""
    print(sentence, file=sys.stderr, flush=True)


class LineDisplay(AbstractContextManager["LineDisplay"]):
    """Log with one line per epoch.

    Example:
        >>> with LineDisplay(print) as display:
        ...     display.begin(epochs=2, done=0, budget=Budget())
        ...     display.epoch({"epoch": 1, "loss": 0.5, "dice": 0.8125, "lr": 0.01, "seconds": 2.0})
        epoch 2/2  loss 0.5000  dice 0.8125  lr 0.01  2 s
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self.say = log
        self._seconds: list[float] = []

    def __exit__(self, *_: object) -> None:
        pass

    def begin(self, *, epochs: int, done: int, budget: Budget) -> None:
        """Start after ``done`` of ``epochs`` epochs; the budget may end earlier."""
        self._epochs, self._budget = epochs, budget
        if done:
            self.say(f"resuming after epoch {done}/{epochs}")

    def step(self) -> None:
        pass

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Show the numbers of an epoch and the time left."""
        self._seconds.append(row["seconds"])
        left = self._epochs - row["epoch"] - 1
        formats = {"loss": "loss {:.4f}", "dice": "dice {:.4f}", "lr": "lr {:.3g}", "data_wait": "data wait {:.1%}"}
        numbers = [text.format(row[key]) for key, text in formats.items() if row.get(key) is not None]
        words = [f"epoch {row['epoch'] + 1}/{self._epochs}", *numbers, format_duration(row["seconds"])]
        if left and not self._budget.is_over:
            pace = sum(self._seconds) / len(self._seconds)
            words.append(f"left {format_duration(min(left * pace, self._budget.left_s))}")
        self._show("  ".join(words))

    def _show(self, line: str) -> None:
        self.say(line)


class BarDisplay(LineDisplay):
    """Bar over the epochs, labelled with the latest epoch's line.

    The bar moves with every step once the number of steps per epoch is known.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task("train", total=None)
        self._steps, self._steps_per_epoch = 0, 0
        super().__init__(partial(self._bar.console.print, markup=False, highlight=False))

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, *, epochs: int, done: int, budget: Budget) -> None:
        super().begin(epochs=epochs, done=done, budget=budget)
        self._bar.update(self._task, total=epochs, completed=done)
        self._bar.start()

    def step(self) -> None:
        """Advance by the share of one step in an epoch."""
        self._steps += 1
        if self._steps < self._steps_per_epoch:
            self._bar.update(self._task, advance=1 / self._steps_per_epoch)

    def epoch(self, row: Mapping[str, Any]) -> None:
        super().epoch(row)
        self._steps_per_epoch, self._steps = self._steps, 0
        self._bar.update(self._task, completed=row["epoch"] + 1)

    def _show(self, line: str) -> None:
        self._bar.update(self._task, description=line)


def format_duration(seconds: float) -> str:
    """Format a duration in its two largest units.

    Example:
        >>> format_duration(59.4), format_duration(83), format_duration(7260)
        ('59 s', '1 min 23 s', '2 h 1 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
