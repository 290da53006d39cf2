"""Writing files so that each is whole or absent, whenever the process dies."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from uumamba.runtime.errors import UsageError, UumambaError


@contextmanager
def whole_file(path: Path | str, *, before_replacing: Callable[[], None] | None = None) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it replaces ``path``, on failure it is removed.

    The temporary name keeps every suffix of ``path`` (``.nii.gz`` decides how writers encode). The content is
    synchronised to disk before the rename and the folder after it, so a power cut leaves the old file or the new one.

    Args:
        path: the file.
        before_replacing: called when all of the new file is on the disk and the old one still stands.

    Raises:
        UsageError: the parent cannot be a folder to write in, ``path`` is a folder, or its name is too long.

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
    _refuse_folder(path)
    # The end of the name alone, so that the longest name still fits with what stands before it.
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
def room_for(path: Path | str) -> Iterator[None]:
    """Say in one sentence that a file could not be written, as on a full disk.

    Raises:
        UumambaError: in place of any OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UumambaError(f"{path} could not be written ({reason}); make room or choose another folder.") from error


def make_folder(path: Path | str) -> Path:
    """Create a folder and its parents, or say in one sentence why nothing can be written there.

    Raises:
        UsageError: a part of the path is a regular file or leads nowhere, or the place is not writable.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # the one sure way to know; it has no name and leaves nothing
            return path
    except OSError as error:
        culprit = next(
            (part for part in (path, *path.parents) if os.path.lexists(part) and not os.path.isdir(part)), None
        )
        if culprit is None:
            reason = f"to write in ({error.strerror})"
        else:
            reason = f"because {culprit} {'is a file' if os.path.exists(culprit) else 'is a link that leads nowhere'}"
        raise UsageError(f"{path} cannot be a folder {reason}; choose another output path.") from None


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON that is whole or absent: two-space indent, keys in the given order, final newline, NaN refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text that is whole or absent.

    Raises:
        UumambaError: it could not be written, as on a full disk.
    """
    with room_for(path), whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def _refuse_folder(path: Path) -> None:
    try:
        if not path.is_dir():
            return
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}); choose another output path.") from None
    raise UsageError(f"{path} is a folder; give the name of a file.")


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
