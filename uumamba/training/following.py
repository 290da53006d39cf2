"""Whoever follows a run: told of each epoch's row, so that the trainer knows of no tracker and no manifest."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

Row = Mapping[str, Any]


class Follower(Protocol):
    """A record of a run beside ``metrics.jsonl``, which stays the one that counts."""

    def begin(self, rows: Sequence[Row], *, done: int, epochs: int) -> None:
        """Training goes on after ``done`` of ``epochs`` epochs, of which these are the rows; later ones are void."""

    def epoch(self, row: Row) -> None:
        """An epoch is done, with the row that stands in ``metrics.jsonl``."""

    def end(self) -> None:
        """No row will come, whatever the reason."""


class Following:
    """Tells every follower, and lets none of them end a training; a context manager.

    What one raises before the first step is raised. Later it is said, and that follower is told nothing more: hours of
    computing are worth more than a record that its next ``begin`` fills from ``metrics.jsonl``.

    Args:
        followers: told in this order.
        say: called with a sentence where one fails.
    """

    def __init__(self, followers: Iterable[Follower], *, say: Callable[[str], None]) -> None:
        self._followers = list(followers)
        self._say = say

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._tell(lambda follower: follower.end())

    def begin(self, rows: Sequence[Row], *, done: int, epochs: int) -> None:
        """Training goes on after these rows."""
        for follower in self._followers:
            follower.begin(rows, done=done, epochs=epochs)

    def epoch(self, row: Row) -> None:
        """An epoch is done."""
        self._tell(lambda follower: follower.epoch(row))

    def _tell(self, event: Callable[[Follower], None]) -> None:
        for follower in tuple(self._followers):
            try:
                event(follower)
            except Exception as error:  # noqa: BLE001 whatever a tracker's package raises, the training goes on
                self._followers.remove(follower)
                self._say(
                    f"{type(follower).__name__} failed ({type(error).__name__}: {error}) and is left out; "
                    "metrics.jsonl has every row, and the next --resume brings it up to date."
                )


def scalars(row: Row, prefix: str = "") -> dict[str, float]:
    """The finite numbers of a row but its epoch, those of nested rows as ``outer/inner``.

    Example:
        >>> scalars({"epoch": 3, "loss": 0.5, "dice": None, "loss_weights": {"region": 1.0}})
        {'loss': 0.5, 'loss_weights/region': 1.0}
    """
    found: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            found |= scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[f"{prefix}{key}"] = float(value)
    if not prefix:
        found.pop("epoch", None)
    return found


def finished_at(rows: Sequence[Row], now: float) -> list[float]:
    """When each epoch ended, for a record that is written afterwards: counted back from now by their seconds.

    Example:
        >>> finished_at([{"seconds": 4.0}, {"seconds": 3.0}], now=100.0)
        [97.0, 100.0]
    """
    times = [now]
    for row in reversed(rows[1:]):
        times.append(times[-1] - float(row.get("seconds") or 0.0))
    return times[::-1] if rows else []
