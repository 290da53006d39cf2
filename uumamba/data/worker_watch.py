"""What each process that reads ahead is at, so that its death is told with the case that it was reading."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import RawArray, active_children
from multiprocessing.process import BaseProcess

from torch.utils.data import get_worker_info

from uumamba.runtime.errors import UsageError, UumambaError

WIDTH = 256  # bytes of a worker's line
CURE = "use fewer workers, or none with `--set training.workers=0`, and go on with --resume"


class ReadingBoard:
    """One line of text for each worker process, in memory that it shares with this one.

    Example:
        >>> board = ReadingBoard(2)
        >>> board.write(1, "77 patient001_frame01")
        >>> board.lines()
        ['', '77 patient001_frame01']
    """

    def __init__(self, workers: int) -> None:
        self._text = RawArray("c", WIDTH * workers)

    def write(self, worker: int, line: str) -> None:
        """Replace a worker's line; a very long one is cut."""
        content = line.encode()[: WIDTH - 1].ljust(WIDTH, b"\0")
        self._text[worker * WIDTH : (worker + 1) * WIDTH] = content

    def lines(self) -> list[str]:
        """The line of each worker."""
        content = bytes(self._text)
        rows = (content[start : start + WIDTH] for start in range(0, len(content), WIDTH))
        return [row.rstrip(b"\0").decode(errors="replace") for row in rows]


def tell_reading(case_id: str) -> None:
    """Say which case this process reads now; without effect where it is no worker."""
    info = get_worker_info()
    board = None if info is None else getattr(info.dataset, "board", None)
    if info is not None and isinstance(board, ReadingBoard):
        board.write(info.id, f"{os.getpid()} {case_id}")


class WorkerWatch:
    """Notices worker processes that died, and says what they were reading.

    Args:
        workers: how many; with 0 there is nothing to watch and no memory is shared.

    Raises:
        UsageError: the system has no shared memory.
    """

    def __init__(self, workers: int) -> None:
        with _shared_memory_or_why():
            self.board = ReadingBoard(workers) if workers else None
        self._processes: list[BaseProcess] = []

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Around the start of the workers.

        Raises:
            UsageError: the system has no shared memory.
        """
        before = set(active_children())
        with _signals_as_they_are(), _shared_memory_or_why():
            yield
        self._processes = [process for process in active_children() if process not in before]

    def refuse_dead(self) -> None:
        """Raise where a worker is gone.

        Raises:
            UumambaError: the message names its end, and the case.
        """
        dead = next((process for process in self._processes if not process.is_alive()), None)
        if dead is not None:
            raise UumambaError(
                f"A process that reads patches {_end_of(dead)}{self._case_of(dead)}; often memory ran out: {CURE}."
            )

    def _case_of(self, process: BaseProcess) -> str:
        lines = [] if self.board is None else self.board.lines()
        cases = [line.partition(" ")[2] for line in lines if line.startswith(f"{process.pid} ")]
        return f" at case {cases[0]}" if cases else " before its first case"


def _end_of(process: BaseProcess) -> str:
    code = process.exitcode or 0
    if code >= 0:
        return f"ended by itself with exit code {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}" + (", as when /dev/shm is full," if name == "SIGBUS" else "")


@contextmanager
def _signals_as_they_are() -> Iterator[None]:
    """Torch's loader lets the end of a worker raise wherever this process is, also in the middle of a step.

    Without that handler it is noticed where its batch is waited for, within five seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


@contextmanager
def _shared_memory_or_why() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"Processes that read ahead cannot be started ({error.strerror or error}); they need shared memory, so "
            "mount /dev/shm, or read in this process with `--set training.workers=0`."
        ) from error
