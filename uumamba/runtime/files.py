"""Atomic file writes, folder locks, and opening of regular files.

A file is complete or absent, whenever the process ends.
"""

import errno
import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from uumamba.runtime.errors import UsageError, UumambaError, require

NAME_ERRORS = (errno.ENAMETOOLONG, errno.EILSEQ)
"""Numbers of an OSError about the name of one file, which say nothing about the disk."""
_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFLNK: "a symbolic link",
}  # fmt: skip


class OutputError(UumambaError):
    """Output that cannot be written: a full disk, a quota, no permission.

    It concerns all cases, so it ends the work.
    """


@contextmanager
def whole_file(path: Path | str, *, before_replacing: Callable[[], None] | None = None) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path in the same folder.

    On success the temporary file replaces ``path``; on failure it is removed.

    The temporary name keeps every suffix of ``path`` (``.nii.gz`` decides how writers encode). The content is
    synchronised to disk before the rename and the folder after it, so a power cut leaves the old file or the new one.
    The file has the permissions of the umask, also if a library made it with others. Links are replaced, not followed.

    Args:
        path: the file.
        before_replacing: called when the new file is complete on the disk and the old file is still in place.

    Raises:
        UsageError: the parent is no writable folder, or ``path`` is a folder.
        OutputError: the file could not be written, for example because the disk is full.
        OSError: the name is too long or not valid on this disk; see :data:`NAME_ERRORS`.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with whole_file(folder / "a.txt") as unfinished:
        ...     _ = unfinished.write_text("whole")
        >>> (folder / "a.txt").read_text(encoding="utf-8")
        'whole'
    """
    path = Path(path)
    _make_parent(path)
    require(not os.path.isdir(path), str(path), got="a folder", expected="a file name", fix="choose another name")
    # The end of the name only, so that even the longest name fits with the prefix.
    unfinished = path.parent / f".unfinished-{os.getpid()}-{os.urandom(4).hex()}-{path.name[-50:]}"
    with report_write_errors(path, but=NAME_ERRORS):
        try:
            with unfinished.open("xb") as stream:  # created here, since libraries create files for the owner only
                mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            yield unfinished
            if stat.S_IMODE(unfinished.stat().st_mode) != mode:
                unfinished.chmod(mode)
            _synchronise(unfinished)
            if before_replacing is not None:
                before_replacing()
            os.replace(unfinished, path)
            _synchronise(path.parent)
        finally:
            unfinished.unlink(missing_ok=True)


@contextmanager
def report_write_errors(
    path: Path | str, *, but: tuple[int, ...] = (), elsewhere: str = "use another path"
) -> Iterator[None]:
    """Turn an OSError into an OutputError with the path and reason.

    An example is a full disk.

    Args:
        path: the written file.
        but: numbers of errors that pass unchanged.
        elsewhere: how the user chooses another place, for the fix.

    Raises:
        OutputError: in place of any other OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in but:
            raise
        raise OutputError(
            f"{path} could not be written: {error.strerror or error}. Fix: {_name_write_fix(error, elsewhere)}."
        ) from error


def remove_file(path: Path) -> None:
    """Remove a file of the output, if it exists.

    Raises:
        OutputError: the folder may not be written to.
        OSError: the name is too long or not valid on this disk.
    """
    with report_write_errors(path, but=NAME_ERRORS):
        path.unlink(missing_ok=True)


def open_regular(path: Path | str) -> BufferedReader:
    """Open an existing regular file for reading, or a link to one.

    Opening a FIFO would wait for ever, and opening a device can change it.

    Raises:
        OSError: the file is missing or may not be read, or is a folder, FIFO, socket or device; ``strerror`` says so.

    Example:
        >>> open_regular("/dev/null")
        Traceback (most recent call last):
            ...
        OSError: [Errno 22] a device, not a regular file: '/dev/null'
    """
    _check_regular(path, os.stat(path).st_mode)
    return os.fdopen(_open_checked(path, os.O_RDONLY), "rb")


def describe_path(path: Path | str) -> str:
    """Describe a path that is not what was expected.

    It is absent, a file or a folder.

    Example:
        >>> describe_path("scan.nii.gz")
        'scan.nii.gz, which does not exist'
    """
    path = Path(path)
    if path.is_dir():
        return f"{path}, a folder"
    return f"{path}, a file" if path.exists() else f"{path}, which does not exist"


def find_read_fix(error: OSError, *, otherwise: str) -> str:
    """Return the fix for a file that could not be opened.

    Example:
        >>> find_read_fix(PermissionError(errno.EACCES, "Permission denied"), otherwise="restore the file")
        'allow this user to read the file (chmod)'
    """
    return "allow this user to read the file (chmod)" if isinstance(error, PermissionError) else otherwise


def make_folder(path: Path | str) -> Path:
    """Create a writable folder and its parents.

    Raises:
        UsageError: a part of the path is a file or a broken link, or the folder is not writable.
    """
    path = Path(path)
    try:
        return _create_folder(path)
    except OSError as error:
        raise _describe_folder_error(path, error) from None


@contextmanager
def lock_folder(folder: Path, *, doing: str) -> Iterator[None]:
    """Lock an existing folder against every other process.

    Args:
        folder: gets a file ``.lock`` with the number of the process; the file is never deleted.
        doing: purpose of the lock, such as ``"training"``, for the message of the next process.

    Raises:
        UsageError: another process holds the lock.
        OutputError: the disk is full, the folder may not be written to, or ``.lock`` is a link or no regular file.
    """
    # A record lock (lockf) ends with this process, also after a kill. A flock would remain for seconds in the data
    # loader's forked workers, and a resumed run would be refused.
    with open_own(folder / ".lock", os.O_RDWR) as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                str(folder),
                got=f"a lock of {stream.read(100).decode(errors='replace').strip() or 'unknown process'}",
                expected=f"a folder without another process {doing} in it",
                fix="wait for that process or choose another folder",
            ) from None
        with report_write_errors(folder / ".lock"):
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
        OutputError: the file could not be written, for example because the disk is full.
    """
    with report_write_errors(path), whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def open_own(path: Path, flags: int) -> IO[bytes]:
    """Open a file of an output folder to change it in place.

    The file is created if it is missing, and not buffered. A link is refused, because a stranger who may write to the
    folder could let it lead to any file of this user.

    Args:
        path: the file.
        flags: ``os.O_RDWR``, or ``os.O_WRONLY | os.O_APPEND``.

    Raises:
        OutputError: ``path`` is a link or no regular file, or may not be written.
    """
    with report_write_errors(path):
        if path.is_symlink():  # for the reason; the flag below also holds against a link made after this line
            raise OSError(errno.ELOOP, "a symbolic link, not a regular file", str(path))
        descriptor = _open_checked(path, flags | os.O_CREAT | os.O_NOFOLLOW)
        return os.fdopen(descriptor, "r+b" if flags & os.O_RDWR else "wb", buffering=0)


def _create_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):  # the only reliable check; the file has no name
        return path


def _make_parent(path: Path) -> None:
    """Create the folder of a file; an OSError about its name passes."""
    try:
        _create_folder(path.parent)
    except OSError as error:
        if error.errno in NAME_ERRORS:
            raise
        raise _describe_folder_error(path.parent, error) from None


def _describe_folder_error(path: Path, error: OSError) -> UumambaError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"{path} could not be written: {error.strerror}. Fix: {_name_write_fix(error, 'use another path')}."
        )
    parts = (part for part in (path, *path.parents) if os.path.lexists(part) and not os.path.isdir(part))
    found = next((f"{part}, not a folder" for part in parts), error.strerror)
    return UsageError(str(path), got=found, expected="a writable folder", fix="choose another output path")


def _name_write_fix(error: OSError, elsewhere: str) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"free disk space or {elsewhere}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"allow this user to write there or {elsewhere}"
    return elsewhere


def _open_checked(path: Path | str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        _check_regular(path, os.fstat(descriptor).st_mode)  # another file may have taken the place of a checked one
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(path: Path | str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "another kind of file")
        raise OSError(errno.EINVAL, f"{kind}, not a regular file", str(path))


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
