"""Watch over the processes that read ahead.

The death of one is reported with the case that it was reading.
"""

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

WIDTH = 256  # bytes of a worker's line
FIX = "use fewer workers, or none with `--set training.workers=0`, and continue with --resume"


def report_reading(case_id: str) -> None:
    """Report the case that this process reads now.

    Without effect where it is no worker.
    """
    info = get_worker_info()
    board = getattr(info.dataset, "board", None) if info else None
    if info and board:
        board[info.id].value = f"{os.getpid()} {case_id}".encode()[: WIDTH - 1]


class WorkerWatch:
    """Watch for worker processes that died.

    It knows the case that each was reading. Each worker has a line of text, ``board[worker].value``, in memory shared
    with this process; a long one is cut.

    Args:
        workers: their number; with 0 there is nothing to watch and no memory is shared.

    Raises:
        UsageError: the system has no shared memory.
    """

    def __init__(self, workers: int) -> None:
        with _shared_memory():
            self.board: Any = RawArray(c_char * WIDTH, workers) if workers else ()
        self._processes: list[BaseProcess] = []

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Watch the workers that are started inside.

        Torch's loader lets the end of a worker raise wherever this process is, also in the middle of a step. Its signal
        handler is therefore undone; the death is noticed at the wait for the batch, within five seconds.

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
        """Raise if a worker is gone.

        Raises:
            UumambaError: the message names its end, and the case.
        """
        dead = next((process for process in self._processes if not process.is_alive()), None)
        if dead is None:
            return
        lines = (row.value.decode(errors="replace").partition(" ") for row in self.board)
        where = next((f"at case {case}" for pid, _, case in lines if pid == str(dead.pid)), "before its first case")
        code = dead.exitcode or 0
        end = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended by itself with exit code {code}"
        raise UumambaError(f"A process that reads patches {end} {where}; often memory or /dev/shm is full: {FIX}.")


@contextmanager
def _shared_memory() -> Iterator[None]:
    """Report a system without shared memory."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            "/dev/shm",
            got=error.strerror or error,
            expected="shared memory for workers",
            fix="mount /dev/shm, or read in this process with `--set training.workers=0`",
        ) from error
