"""Detection of killed data-loading workers, with the case being read."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_char
from multiprocessing import RawArray, active_children
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import get_worker_info

from uumamba.runtime.errors import UsageError, UumambaError

WIDTH = 256  # bytes per worker's line
FIX = "use fewer workers, or `--set training.workers=0`, and continue with --resume"


def report_reading(case_id: str) -> None:
    """Report the case that this worker is reading.

    Other processes do nothing.
    """
    info = get_worker_info()
    board = getattr(info.dataset, "board", None) if info else None
    if info and board:
        board[info.id].value = f"{os.getpid()} {case_id}".encode()[: WIDTH - 1]


class WorkerWatch:
    """Detector of worker processes that died.

    Each worker writes the case that it is reading to a line of shared memory, ``board[worker].value``, cut to
    ``WIDTH``.

    Args:
        workers: number of workers; 0 shares no memory.

    Raises:
        UsageError: the system has no shared memory.
    """

    def __init__(self, workers: int) -> None:
        with _shared_memory():
            self.board: Any = RawArray(c_char * WIDTH, workers) if workers else ()
        self._processes: list[BaseProcess] = []

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Watch the workers that are started in the block.

        The signal handler of torch's loader raises at the death of a worker at any point, also within a step. It is
        therefore removed; the death is noticed at the wait for the batch, within five seconds.

        Raises:
            UsageError: the system has no shared memory.
        """
        before, handler = set(active_children()), signal.getsignal(signal.SIGCHLD)
        with _shared_memory():
            yield
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)
        self._processes = [process for process in active_children() if process not in before]

    def raise_if_dead(self) -> None:
        """Raise if a worker has died.

        Raises:
            UumambaError: the message names the cause of death and the case.
        """
        dead = next((process for process in self._processes if not process.is_alive()), None)
        if dead is None:
            return
        lines = (row.value.decode(errors="replace").partition(" ") for row in self.board)
        where = next((f"at case {case}" for pid, _, case in lines if pid == str(dead.pid)), "before its first case")
        code = dead.exitcode or 0
        end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise UumambaError(f"A data-loading worker {end} {where}; memory or /dev/shm may be full. Fix: {FIX}.")


@contextmanager
def _shared_memory() -> Iterator[None]:
    """Turn an OSError into an error about shared memory."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            "/dev/shm",
            got=error.strerror or error,
            expected="shared memory for workers",
            fix="mount /dev/shm, or use `--set training.workers=0`",
        ) from error
