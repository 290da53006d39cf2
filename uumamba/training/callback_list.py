"""Callbacks of a run, called with each epoch's row; the trainer knows no tracker and no manifest."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, Self

from uumamba.runtime.tree import join_keys

Row = Mapping[str, Any]


class Callback(Protocol):
    """Record of a run beside ``metrics.jsonl``, which remains the reference."""

    def begin(self, rows: Sequence[Row], *, done: int, epochs: int) -> None:
        """Start after ``done`` of ``epochs`` epochs, whose rows are given; later rows of the record are void."""

    def epoch(self, row: Row) -> None:
        """Record an epoch by its row of ``metrics.jsonl``."""

    def end(self) -> None:
        """Close the record: no row will follow."""


class CallbackList:
    """Context manager that calls every callback and lets no failure end a training.

    An error before the first step is raised. A later one is reported, and that callback is called no more: hours of
    computing are worth more than a record that its next ``begin`` fills from ``metrics.jsonl``.

    Args:
        callbacks: called in this order.
        say: called with a sentence when one fails.
    """

    def __init__(self, callbacks: Iterable[Callback], *, say: Callable[[str], None]) -> None:
        self._callbacks = list(callbacks)
        self._say = say

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._call(lambda callback: callback.end())

    def begin(self, rows: Sequence[Row], *, done: int, epochs: int) -> None:
        """Call ``begin`` of all."""
        for callback in self._callbacks:
            callback.begin(rows, done=done, epochs=epochs)

    def epoch(self, row: Row) -> None:
        """Call ``epoch`` of all."""
        self._call(lambda callback: callback.epoch(row))

    def _call(self, event: Callable[[Callback], None]) -> None:
        for callback in tuple(self._callbacks):
            try:
                event(callback)
            except Exception as error:  # noqa: BLE001 the training goes on, whatever a tracker's package raises
                self._callbacks.remove(callback)
                self._say(
                    f"{type(callback).__name__} failed ({type(error).__name__}: {error}) and is left out; "
                    "metrics.jsonl has every row, and the next --resume brings it up to date."
                )


def finite_scalars(row: Row) -> dict[str, float]:
    """Return the finite numbers of a row except its epoch, those of nested rows as ``outer/inner``.

    Example:
        >>> finite_scalars({"epoch": 3, "loss": 0.5, "dice": None, "loss_weights": {"region": 1.0}})
        {'loss': 0.5, 'loss_weights/region': 1.0}
    """
    values = join_keys({key: value for key, value in row.items() if key != "epoch"}, separator="/")
    numbers = {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {key: value for key, value in numbers.items() if math.isfinite(value)}


def end_times(rows: Sequence[Row], now: float) -> list[float]:
    """Return when each epoch ended, counted back from ``now`` by their seconds, for a record written afterwards.

    Example:
        >>> end_times([{"seconds": 4.0}, {"seconds": 3.0}], now=100.0)
        [97.0, 100.0]
    """
    times = [now]
    for row in reversed(rows[1:]):
        times.append(times[-1] - float(row.get("seconds") or 0.0))
    return times[::-1] if rows else []
