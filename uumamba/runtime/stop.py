"""Stop requests of a cluster: noted at once, obeyed where the work can be resumed."""

import signal
import threading
from types import FrameType
from typing import Any

from uumamba.runtime.errors import EXIT_STOPPED_RESUMABLE, UumambaError
from uumamba.runtime.ranks import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StoppedOnRequest(UumambaError):
    """A run that stopped on request and can be resumed."""

    exit_code = EXIT_STOPPED_RESUMABLE


class StopRequest:
    """Context in which SIGTERM and SIGUSR1 set ``asked`` to their name instead of ending the process.

    Signals reach the main thread only; elsewhere nothing is caught and ``asked`` stays None. A request inside another
    one starts with the outer one's signal, and passes its own signals on to it.

    Example:
        >>> with StopRequest() as stop:
        ...     signal.raise_signal(signal.SIGUSR1)
        ...     stop.asked
        'SIGUSR1'
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        self._outer: StopRequest | None = None

    def __enter__(self) -> "StopRequest":
        self.asked, self._outer = None, None
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
            outer = getattr(self._handlers[signal.SIGTERM], "__self__", None)
            if isinstance(outer, StopRequest):
                self._outer, self.asked = outer, outer.asked
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def sync(self, ranks: Ranks) -> None:
        """Share a request to any process of a group with all of them."""
        number = ranks.reduce_max(0 if self.asked is None else signal.Signals[self.asked].value)
        self.asked = signal.Signals(number).name if number else None

    def raise_if_requested(self, where: str) -> None:
        """Raise if a stop was requested.

        Args:
            where: progress of the work and how to continue, without a full stop.

        Raises:
            StoppedOnRequest: a signal came.
        """
        if self.asked is not None:
            raise StoppedOnRequest(f"Stopped by {self.asked} {where}.")

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(number).name
        if self._outer is not None:
            self._outer._note(number, frame)
