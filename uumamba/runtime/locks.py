"""Folder lock for one process at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from uumamba.runtime.errors import UsageError
from uumamba.runtime.files import report_write_errors


@contextmanager
def lock_folder(folder: Path, *, doing: str) -> Iterator[None]:
    """Lock an existing folder against every other process.

    Args:
        folder: gets a file ``.lock`` with the number of the process; the file is never deleted.
        doing: purpose of the lock, such as ``"training"``, for the message of the next process.

    Raises:
        UsageError: another process holds the lock.
        UumambaError: the disk is full, or the folder may not be written to.
    """
    # A record lock (lockf) ends with this process, also after a kill. A flock would remain for seconds in the data
    # loader's forked workers, and a resumed run would be refused.
    with report_write_errors(folder / ".lock"):
        stream = (folder / ".lock").open("a+", encoding="utf-8")
    with stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.seek(0)
            raise UsageError(
                str(folder),
                got=f"a lock of {stream.read().strip() or 'unknown process'}",
                expected=f"a folder without another process {doing} in it",
                fix="wait for that process or choose another folder",
            ) from None
        with report_write_errors(folder / ".lock"):
            # Not through the stream, whose buffer would be written again when it is closed.
            os.ftruncate(stream.fileno(), 0)
            os.write(stream.fileno(), f"process {os.getpid()}".encode())
        yield
