"""Stop requests of a cluster.

A request is noted at once and obeyed where the work can be resumed.
"""

import signal
import threading
from types import FrameType
from typing import Any

from uumamba.runtime.errors import EXIT_STOPPED_RESUMABLE, UumambaError
from uumamba.runtime.ranks import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StoppedOnRequest(UumambaError):
    """End of a run on request; the run can be resumed."""

    exit_code = EXIT_STOPPED_RESUMABLE


class StopRequest:
    """Context that records SIGTERM and SIGUSR1 instead of ending the process.

    ``signal_name`` is the name of the received signal, or None. Signals reach the main thread only; in other threads
    nothing is recorded. A nested request starts with the outer request's signal, and passes its own signals on to the
    outer request.

    Example:
        >>> with StopRequest() as stop:
        ...     signal.raise_signal(signal.SIGUSR1)
        ...     stop.signal_name
        'SIGUSR1'
    """

    signal_name: str | None = None
    _outer: "StopRequest | None" = None

    def __enter__(self) -> "StopRequest":
        self._handlers: dict[signal.Signals, Any] = {}
        self.signal_name, self._outer = None, None
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
            outer = getattr(self._handlers[signal.SIGTERM], "__self__", None)
            if isinstance(outer, StopRequest):
                self._outer, self.signal_name = outer, outer.signal_name
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def sync(self, ranks: Ranks) -> None:
        """Share a stop request of any rank with all ranks."""
        number = ranks.reduce_max(0 if self.signal_name is None else signal.Signals[self.signal_name].value)
        self.signal_name = signal.Signals(number).name if number else None

    def raise_if_requested(self, where: str) -> None:
        """Raise if a stop was requested.

        Args:
            where: progress of the work and how to continue, without a full stop.

        Raises:
            StoppedOnRequest: a signal was received.
        """
        if self.signal_name is not None:
            raise StoppedOnRequest(f"Stopped by {self.signal_name} {where}.")

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        if self._outer is not None:
            self._outer._note(number, frame)
