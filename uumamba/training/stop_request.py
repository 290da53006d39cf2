"""A cluster's request to stop: noticed at once, followed where the run can be resumed from."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from uumamba.errors import EXIT_STOPPED_RESUMABLE, UumambaError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StoppedOnRequest(UumambaError):
    """The run stopped because it was told to, and can be resumed."""

    exit_code = EXIT_STOPPED_RESUMABLE


class StopRequest:
    """While entered, SIGTERM and SIGUSR1 set ``asked`` to their name in place of ending the process.

    Signals reach the main thread alone; elsewhere nothing is caught and ``asked`` stays None.

    Example:
        >>> with StopRequest() as stop:
        ...     signal.raise_signal(signal.SIGUSR1)
        ...     stop.asked
        'SIGUSR1'
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        self.asked = None
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._notice) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(number).name
