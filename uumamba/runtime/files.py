"""Atomic file writes, and folder locks.

A file is complete or absent, whenever the process ends.
"""

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from uumamba.runtime.errors import UsageError, UumambaError, require


@contextmanager
def whole_file(path: Path | str, *, before_replacing: Callable[[], None] | None = None) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path in the same folder.

    On success the temporary file replaces ``path``; on failure it is removed.

    The temporary name keeps every suffix of ``path`` (``.nii.gz`` decides how writers encode). The content is
    synchronised to disk before the rename and the folder after it, so a power cut leaves the old file or the new one.

    Args:
        path: the file.
        before_replacing: called when the new file is complete on the disk and the old file is still in place.

    Raises:
        UsageError: the parent is no writable folder, or ``path`` is a folder.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with whole_file(folder / "a.txt") as unfinished:
        ...     _ = unfinished.write_text("whole")
        >>> (folder / "a.txt").read_text(encoding="utf-8")
        'whole'
    """
    path = Path(path)
    make_folder(path.parent)
    require(not os.path.isdir(path), str(path), got="a folder", expected="a file name", fix="choose another name")
    # The end of the name only, so that even the longest name fits with the prefix.
    unfinished = path.parent / f".unfinished-{os.getpid()}-{os.urandom(4).hex()}-{path.name[-50:]}"
    try:
        yield unfinished
        _synchronise(unfinished)
        if before_replacing is not None:
            before_replacing()
        os.replace(unfinished, path)
        _synchronise(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def report_write_errors(path: Path | str) -> Iterator[None]:
    """Turn an OSError into a UumambaError with the path and reason.

    An example is a full disk.

    Raises:
        UumambaError: in place of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise UumambaError(
            f"{path} could not be written: {error.strerror or error}. Fix: free disk space or use another path."
        ) from error


def make_folder(path: Path | str) -> Path:
    """Create a writable folder and its parents.

    Raises:
        UsageError: a part of the path is a file or a broken link, or the folder is not writable.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # the only reliable check; the file has no name
            return path
    except OSError as error:
        parts = (part for part in (path, *path.parents) if os.path.lexists(part) and not os.path.isdir(part))
        found = next((f"{part}, not a folder" for part in parts), error.strerror)
        raise UsageError(str(path), got=found, expected="a writable folder", fix="choose another output path") from None


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


def write_json(path: Path | str, value: Any) -> None:
    """Write a JSON file atomically.

    Two spaces of indent, keys in the given order, a final newline; NaN is refused.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path | str, text: str) -> None:
    """Write a UTF-8 text file atomically.

    Raises:
        UumambaError: the file could not be written, for example because the disk is full.
    """
    with report_write_errors(path), whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
