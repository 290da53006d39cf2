"""Writing files so that each is whole or absent, whenever the process dies."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from uumamba.errors import UsageError


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it replaces ``path``, on failure it is removed.

    The temporary name keeps every suffix of ``path`` (``.nii.gz`` decides how writers encode). The content is
    synchronised to disk before the rename and the folder after it, so a power cut leaves the old file or the new one.

    Raises:
        UsageError: the parent cannot be a folder (a regular file lies on the way) or cannot be written.

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
    unfinished = path.parent / f".unfinished-{os.getpid()}-{os.urandom(4).hex()}-{path.name}"
    try:
        yield unfinished
        _synchronise(unfinished)
        os.replace(unfinished, path)
        _synchronise(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def make_folder(path: Path | str) -> Path:
    """Create a folder and its parents, or say in one sentence why that cannot be.

    Raises:
        UsageError: a part of the path is a regular file, or the place is not writable.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        culprit = next(part for part in (path, *path.parents) if part.exists() and not part.is_dir())
        raise UsageError(
            f"{path} cannot be a folder because {culprit} is a file; choose another output path."
        ) from None
    except PermissionError:
        raise UsageError(f"{path} cannot be created (permission denied); choose a folder that you may write.") from None
    return path


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON that is whole or absent: two-space indent, keys in the given order, final newline, NaN refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text that is whole or absent."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
