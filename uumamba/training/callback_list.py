"""Callbacks that the trainer calls with each epoch's row."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from uumamba.runtime.tree import join_keys

Row = Mapping[str, Any]  # of metrics.jsonl


class Callback(Protocol):
    """Record of a run in addition to ``metrics.jsonl``, the reference."""

    def begin(self, rows: Sequence[Row], *, done: int, epochs: int) -> None:
        """Start or continue the record of a run.

        Args:
            rows: rows of the epochs so far; later rows of the record are void.
            done: number of complete epochs.
            epochs: number of epochs of the run.
        """

    def epoch(self, row: Row) -> None:
        """Record an epoch by its row of ``metrics.jsonl``."""

    def end(self) -> None:
        """Close the record after the last row."""


class CallbackList(AbstractContextManager["CallbackList"]):
    """Context manager that calls every callback and reports their failures.

    An error before the first step is raised. A later one is reported, and the callback is not called again: hours of
    computing are worth more than a record that its next ``begin`` fills from ``metrics.jsonl``.

    Args:
        callbacks: called in this order.
        say: called with a sentence when one fails.
    """

    def __init__(self, callbacks: Iterable[Callback], *, say: Callable[[str], None]) -> None:
        self._callbacks = list(callbacks)
        self._say = say

    def __exit__(self, *_: object) -> None:
        self._call(lambda callback: callback.end())

    def begin(self, rows: Sequence[Row], *, done: int, epochs: int) -> None:
        """Call ``begin`` of each callback; an error is raised."""
        for callback in self._callbacks:
            callback.begin(rows, done=done, epochs=epochs)

    def epoch(self, row: Row) -> None:
        """Call ``epoch`` of each callback; an error is reported."""
        self._call(lambda callback: callback.epoch(row))

    def _call(self, event: Callable[[Callback], None]) -> None:
        for callback in tuple(self._callbacks):
            try:
                event(callback)
            except Exception as error:  # noqa: BLE001 the training continues, whatever a tracker's package raises
                self._callbacks.remove(callback)
                self._say(
                    f"{type(callback).__name__} failed ({type(error).__name__}: {error}) and is left out; "
                    "metrics.jsonl has every row, and the next --resume brings it up to date."
                )


def finite_scalars(row: Row) -> dict[str, float]:
    """Return the finite numbers of a row, without its epoch.

    Numbers of nested rows are named ``outer/inner``.

    Example:
        >>> finite_scalars({"epoch": 3, "loss": 0.5, "dice": None, "loss_weights": {"region": 1.0}})
        {'loss': 0.5, 'loss_weights/region': 1.0}
    """
    values = join_keys({key: value for key, value in row.items() if key != "epoch"}, separator="/")
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def end_times(rows: Sequence[Row], now: float) -> list[float]:
    """Return the end of each epoch, for a record written later.

    The times are counted back from ``now`` by the epochs' seconds.

    Example:
        >>> end_times([{"seconds": 4.0}, {"seconds": 3.0}], now=100.0)
        [97.0, 100.0]
    """
    times = [now]
    for row in reversed(rows[1:]):
        times.append(times[-1] - float(row.get("seconds") or 0.0))
    return times[::-1] if rows else []
