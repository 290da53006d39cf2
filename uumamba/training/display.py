"""Progress display: a bar on a terminal, lines in a log."""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from uumamba.runtime.observer import Observer, Row, RunView, to_stderr
from uumamba.runtime.terminal import is_terminal, make_console
from uumamba.training.progress_plot import ProgressPlot


def standard_observers(
    *, progress: bool | None = None, log: Callable[[str], None] | None = None
) -> tuple[Observer, ...]:
    """Make the observers of a trainer without others: display and plot.

    For the arguments see :func:`make_display`.
    """
    return make_display(progress, log), ProgressPlot()


def make_display(progress: bool | None = None, log: Callable[[str], None] | None = None) -> "LineDisplay":
    """Make the display of a run.

    Args:
        progress: True for a bar, False for lines, None for a bar if stderr is a terminal.
        log: called with each line; stderr if None.
    """
    if is_terminal(sys.stderr) if progress is None else progress:
        return BarDisplay()
    return LineDisplay(log or to_stderr)


class LineDisplay(Observer):
    """Log with one line per epoch.

    Example:
        >>> row = {"epoch": 1, "loss": 0.5, "dice": 0.8125, "lr": 0.01, "seconds": 2.0}
        >>> LineDisplay(print).on_epoch_saved(RunView(epochs=2), row)
        epoch 2/2  loss 0.5000  dice 0.8125  lr 0.01  2 s
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self.say = log
        self._seconds: list[float] = []

    def on_start(self, run: RunView) -> None:
        if run.epochs_done:
            self.say(f"resuming after epoch {run.epochs_done}/{run.epochs}")

    def on_epoch_saved(self, run: RunView, row: Row) -> None:
        """Show the numbers of an epoch and the time left."""
        self._seconds.append(row["seconds"])
        self._show(self._format(run, row))

    def on_message(self, sentence: str) -> bool:
        self.say(sentence)
        return True

    def _format(self, run: RunView, row: Mapping[str, Any]) -> str:
        left = run.epochs - row["epoch"] - 1
        formats = {"loss": "loss {:.4f}", "dice": "dice {:.4f}", "lr": "lr {:.3g}", "data_wait": "data wait {:.1%}"}
        numbers = [text.format(row[key]) for key, text in formats.items() if row.get(key) is not None]
        words = [f"epoch {row['epoch'] + 1}/{run.epochs}", *numbers, format_duration(row["seconds"])]
        if left and run.seconds_left:
            pace = sum(self._seconds) / len(self._seconds)
            words.append(f"left {format_duration(min(left * pace, run.seconds_left))}")
        return "  ".join(words)

    def _show(self, line: str) -> None:
        self.say(line)


class BarDisplay(LineDisplay):
    """Bar over the epochs, labelled with the latest epoch's line.

    The bar moves with every step once the number of steps per epoch is known.
    """

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=make_console(stderr=True))
        self._task = self._bar.add_task("train", total=None)
        self._steps, self._steps_per_epoch = 0, 0
        super().__init__(partial(self._bar.console.print, markup=False, highlight=False))

    def on_start(self, run: RunView) -> None:
        super().on_start(run)
        self._bar.update(self._task, total=run.epochs, completed=run.epochs_done)
        self._bar.start()

    def on_end(self, run: RunView, error: BaseException | None) -> None:
        self._bar.stop()

    def on_step(self, run: RunView) -> None:
        """Advance by the share of one step in an epoch."""
        self._steps += 1
        if self._steps < self._steps_per_epoch:
            self._bar.update(self._task, advance=1 / self._steps_per_epoch)

    def on_epoch_saved(self, run: RunView, row: Row) -> None:
        super().on_epoch_saved(run, row)
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
