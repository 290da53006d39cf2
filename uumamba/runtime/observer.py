"""Observers of a training run: trackers, displays, counters."""

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from uumamba.runtime.errors import require
from uumamba.runtime.memory_shortage import summarize_error
from uumamba.runtime.ranks import ALONE, Ranks
from uumamba.runtime.tree import flatten

Row = dict[str, Any]  # of metrics.jsonl


@dataclass
class RunView:
    """State of a run for its observers, which only read it.

    Attributes:
        net: the trained network, without wrappers.
        optimizer: the optimizer of the run; None in a test.
        epochs: number of epochs of the run, at most.
        epochs_done: complete epochs, which is the index of the current epoch.
        loss: loss of the latest step, on the device; None before the first.
        was_skipped: whether the latest step was skipped, because a value was not finite.
        rows: rows of the complete epochs; empty on other ranks than rank 0.
        folder: folder of the run; None without files, and on other ranks than rank 0.
        seconds_left: time left for steps, at the latest epoch; infinite without a budget.
        ranks: the processes that train together.
    """

    net: nn.Module = field(default_factory=nn.Identity)
    optimizer: Optimizer | None = None
    epochs: int = 1
    epochs_done: int = 0
    loss: Tensor | None = None
    was_skipped: bool = False
    rows: list[Row] = field(default_factory=list)
    folder: Path | None = None
    seconds_left: float = math.inf
    ranks: Ranks = ALONE


class Observer:
    """Follower of a training run; every method does nothing by default.

    An observer reads the run and does not change the training. A part of a step is an optimizer, an objective or a
    method instead.

    Attributes:
        may_fail: an error is reported, and the observer is called no more; otherwise an error ends the run.
        rank_zero_only: the observer exists on rank 0 only. An observer may make collective calls if this and
            ``may_fail`` are False; otherwise a rank could wait for one that has no observer any more.
        key: name of its state in the checkpoint; without a name no state is stored.

    Example:
        >>> class Losses(Observer):
        ...     key = "losses"
        ...     def __init__(self):
        ...         self.found = []
        ...     def on_step(self, run):
        ...         self.found.append(float(run.loss))
        ...     def on_epoch_end(self, run, row):
        ...         row["lowest_loss"] = min(self.found)
        ...     def state_dict(self):
        ...         return {"found": self.found}
        ...     def load_state_dict(self, state_dict):
        ...         self.found = state_dict["found"]
    """

    may_fail: bool = True
    rank_zero_only: bool = True
    key: str = ""

    def on_start(self, run: RunView) -> None:
        """Prepare for the first step; a resumed run has rows."""

    def on_epoch_start(self, run: RunView) -> None:
        """Prepare for an epoch; also called when a run resumes within it."""

    def on_step(self, run: RunView) -> None:
        """Follow an optimizer step, once, after any retry succeeded."""

    def on_epoch_end(self, run: RunView, row: Row) -> None:
        """Add values to an epoch's row before it is written."""

    def on_epoch_saved(self, run: RunView, row: Row) -> None:
        """Record a row that is in ``metrics.jsonl`` and the checkpoint."""

    def on_message(self, sentence: str) -> bool:
        """Show a sentence; return whether it was shown."""
        return False

    def on_end(self, run: RunView, error: BaseException | None) -> None:
        """Close; also called after an error or a stop, even before ``on_start``."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state to store, as tensors and plain values."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the state of a checkpoint, before ``on_start``."""


class ObserverList(AbstractContextManager["ObserverList"]):
    """Context manager that calls observers in order and reports their failures.

    An observer with ``may_fail`` that raises is reported once and called no more: hours of computing are worth more
    than a record. Every rank decides and reports alone, without a collective call, so no rank waits for another. A
    sentence that no observer shows goes to stderr of rank 0.

    Args:
        observers: called in this order; on other ranks than rank 0 only those without ``rank_zero_only``.
        run: the state that they read.

    Raises:
        UsageError: an entry is no observer, or two have the same key.

    Example:
        >>> class Broken(Observer):
        ...     def on_step(self, run):
        ...         raise OSError("no space left")
        >>> class Lines(Observer):
        ...     def on_message(self, sentence):
        ...         print(sentence)
        ...         return True
        >>> with ObserverList([Broken(), Lines()], RunView()) as observers:
        ...     observers.on_step()
        ...     observers.on_step()
        Broken failed (OSError: no space left) and is left out; training continues.
    """

    def __init__(self, observers: Iterable[Observer], run: RunView) -> None:
        given = list(observers)
        for each in given:
            require(isinstance(each, Observer), "observers", got=type(each).__name__, expected="an Observer")
        keys = [each.key for each in given if each.key]
        require(len(keys) == len({*keys}), "observers", got=f"keys {', '.join(keys)}", expected="each key once")
        self.run = run
        self._observers = [each for each in given if run.ranks.is_rank_zero or not each.rank_zero_only]

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        self._call(lambda each: each.on_end(self.run, error))

    def on_start(self) -> None:
        """Call ``on_start`` of each."""
        self._call(lambda each: each.on_start(self.run))

    def on_epoch_start(self) -> None:
        """Call ``on_epoch_start`` of each."""
        self._call(lambda each: each.on_epoch_start(self.run))

    def on_step(self) -> None:
        """Call ``on_step`` of each."""
        self._call(lambda each: each.on_step(self.run))

    def on_epoch_end(self, row: Row) -> None:
        """Call ``on_epoch_end`` of each, and add new values to the row.

        Values that are not JSON are an error of their observer.
        """

        def add(each: Observer) -> None:
            longer = dict(row)
            each.on_epoch_end(self.run, longer)
            json.dumps(longer)
            row.update(longer | row)

        self._call(add)

    def on_epoch_saved(self, row: Row) -> None:
        """Call ``on_epoch_saved`` of each."""
        self._call(lambda each: each.on_epoch_saved(self.run, row))

    def say(self, sentence: str) -> None:
        """Show a sentence by every observer that shows any, or on stderr."""
        shown: list[bool] = []
        self._call(lambda each: shown.append(each.on_message(sentence)))
        if not any(shown) and self.run.ranks.is_rank_zero:
            to_stderr(sentence)

    def state_dict(self) -> dict[str, Any]:
        """Return the states by key.

        A state that no checkpoint can hold is an error of its observer.
        """
        states: dict[str, Any] = {}

        def add(each: Observer) -> None:
            if each.key and (state := each.state_dict()):
                flatten(state, each.key)
                states[each.key] = state

        self._call(add)
        return states

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Load the state of each observer that has one."""
        self._call(lambda each: each.load_state_dict(states[each.key]) if each.key in states else None)

    def _call(self, event: Callable[[Observer], object]) -> None:
        for each in tuple(self._observers):
            if not any(each is left for left in self._observers):
                continue  # an earlier report has failed there
            try:
                event(each)
            except Exception as error:
                if not each.may_fail:
                    raise
                self._observers = [left for left in self._observers if left is not each]
                report, ranks = describe_failure(type(each).__name__, error), self.run.ranks
                if ranks.is_rank_zero:
                    self.say(report)
                else:
                    to_stderr(f"rank {ranks.rank}: {report}")


def describe_failure(name: str, error: Exception) -> str:
    """Describe the failure of an observer that is left out.

    Example:
        >>> describe_failure("ProgressPlot", OSError("no space left"))
        'ProgressPlot failed (OSError: no space left) and is left out; training continues.'
    """
    reason = f"{type(error).__name__}: {summarize_error(error)}"
    return f"{name} failed ({reason}) and is left out; training continues."


def to_stderr(sentence: str) -> None:
    """Print to stderr and flush; a closed stderr is no error."""
    with suppress(OSError, ValueError):
        print(sentence, file=sys.stderr, flush=True)
