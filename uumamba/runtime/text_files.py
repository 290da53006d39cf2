"""Text files and JSON from disk, within limits.

A file may be foreign or damaged, so its size and depth are checked before memory is taken. Every limit is above the
needs of a data set of 100 000 cases.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from uumamba.runtime.files import open_regular

MAX_JSON_BYTES = 64 * 2**20
MAX_YAML_BYTES = 2**20
MAX_YAML_NODES = 20_000
"""Values of a YAML file, where an alias counts as all values that it stands for."""
MAX_YAML_DEPTH = 50
MAX_SHEET_BYTES = 8 * 2**20
"""Bytes of a CSV file, and of a workbook."""
MAX_UNPACKED_SHEET_BYTES = 64 * 2**20
MAX_SHEET_CELLS = 1_000_000
MAX_SCORES_BYTES = 512 * 2**20
"""Bytes of ``scores.csv``, some 3 million rows."""


class LimitError(ValueError):
    """Error of a file that exceeds a limit."""


def read_limited(path: Path | str, *, most: int = MAX_JSON_BYTES) -> bytes:
    """Read a regular file of at most ``most`` bytes.

    Raises:
        OSError: the file is missing, may not be read or is no regular file.
        LimitError: the file is larger.
    """
    with open_regular(path) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise LimitError(f"more than {most / 2**20:g} MiB")
    return content


@contextmanager
def open_limited(path: Path | str, *, most: int) -> Iterator[BinaryIO]:
    """Open a regular file of at most ``most`` bytes.

    Raises:
        OSError: as for :func:`read_limited`.
        LimitError: the file is larger.
    """
    with open_regular(path) as stream:
        if os.fstat(stream.fileno()).st_size > most:
            raise LimitError(f"more than {most / 2**20:g} MiB")
        yield stream


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: the text is no JSON, not UTF-8, or nested too deeply.

    Example:
        >>> parse_json("[" * 100_000)
        Traceback (most recent call last):
            ...
        uumamba.runtime.text_files.LimitError: JSON that is nested too deeply
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise LimitError("JSON that is nested too deeply") from None


def load_json(path: Path | str) -> Any:
    """Read a JSON file of at most :data:`MAX_JSON_BYTES`.

    Raises:
        OSError: as for :func:`read_limited`.
        ValueError: the file is too large, too deep or no JSON.
    """
    return parse_json(read_limited(path))
