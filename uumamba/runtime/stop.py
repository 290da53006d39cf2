"""A cluster's request to stop: noticed at once, followed where the run can be resumed from."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from uumamba.runtime.errors import EXIT_STOPPED_RESUMABLE, UumambaError
from uumamba.runtime.ranks import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StoppedOnRequest(UumambaError):
    """The run stopped because it was told to, and can be resumed."""

    exit_code = EXIT_STOPPED_RESUMABLE


class StopRequest:
    """While entered, SIGTERM and SIGUSR1 set ``asked`` to their name in place of ending the process.

    Signals reach the main thread alone; elsewhere nothing is caught and ``asked`` stays None. A request that is entered
    within another one begins with what that one was asked, and tells it what it is asked itself.

    Example:
        >>> with StopRequest() as stop:
        ...     signal.raise_signal(signal.SIGUSR1)
        ...     stop.asked
        'SIGUSR1'
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._outer: StopRequest | None = None

    def __enter__(self) -> "StopRequest":
        self.asked = None
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._notice) for number in SIGNALS}
            outer = getattr(self._before[signal.SIGTERM], "__self__", None)
            self._outer = outer if isinstance(outer, StopRequest) else None
            self.asked = None if self._outer is None else self._outer.asked
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agree(self, ranks: Ranks) -> None:
        """Let what any process of a group was asked hold for all of them."""
        number = ranks.largest(0 if self.asked is None else signal.Signals[self.asked].value)
        self.asked = signal.Signals(number).name if number else None

    def follow(self, where: str) -> None:
        """Stop here if that was asked for.

        Args:
            where: how far the work is and how to go on, without a full stop.

        Raises:
            StoppedOnRequest: it was.
        """
        if self.asked is not None:
            raise StoppedOnRequest(f"Stopped by {self.asked} {where}.")

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(number).name
        if self._outer is not None:
            self._outer._notice(number, frame)
