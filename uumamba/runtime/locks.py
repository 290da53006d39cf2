"""One process at a time in a folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from uumamba.runtime.errors import UsageError
from uumamba.runtime.files import room_for


@contextmanager
def locked(folder: Path, *, doing: str) -> Iterator[None]:
    """Keep every other process out of a folder that exists.

    Args:
        folder: gets a file ``.lock``, which stays and names the process.
        doing: what it is locked for, such as ``"training"``, to be named to the others.

    Raises:
        UsageError: another process holds it, or it may not be written to.
        UumambaError: the disk is full.
    """
    # A record lock (lockf): it ends with this very process, however it dies. A flock would live on in the
    # data loader's forked workers for seconds after a kill, and a resumed run would be refused.
    with _open_lock(folder) as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.seek(0)
            owner = stream.read().strip() or "unknown"
            raise UsageError(
                f"Another process ({owner}) is {doing} in {folder}; wait for it or choose another folder."
            ) from None
        with room_for(folder / ".lock"):
            # Not through the stream, which would try what failed once more when it is closed.
            os.ftruncate(stream.fileno(), 0)
            os.write(stream.fileno(), f"process {os.getpid()}".encode())
        yield


def _open_lock(folder: Path) -> TextIO:
    try:
        return (folder / ".lock").open("a+", encoding="utf-8")
    except PermissionError:
        raise UsageError(f"{folder} may not be written to; choose another folder.") from None
