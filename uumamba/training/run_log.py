"""``metrics.jsonl``: one row per epoch, readable after any crash."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uumamba.runtime.files import report_write_errors, write_text


class RunLog:
    """Rows of numbers, one JSON object per line.

    A number that is not finite is written as null. Rows from the first incomplete one on are ignored.

    Args:
        path: the file; a missing file has no rows.

    Example:
        >>> import tempfile
        >>> log = RunLog(Path(tempfile.mkdtemp()) / "metrics.jsonl")
        >>> log.append({"epoch": 0, "loss": 0.5})
        >>> log.append({"epoch": 1, "loss": float("nan")})
        >>> log.rows()
        [{'epoch': 0, 'loss': 0.5}, {'epoch': 1, 'loss': None}]
        >>> log.cut(epochs=1)
        >>> log.rows()
        [{'epoch': 0, 'loss': 0.5}]
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def append(self, row: Mapping[str, Any]) -> None:
        """Append a row and synchronise the file to the disk.

        Raises:
            UumambaError: the disk is full; an incomplete row is ignored.
        """
        with report_write_errors(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write(_line(row))
            stream.flush()
            os.fsync(stream.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows before the first incomplete one."""
        rows: list[dict[str, Any]] = []
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""
        for line in text.splitlines(keepends=True):
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not line.endswith("\n") or not isinstance(row, dict):
                break
            rows.append(row)
        return rows

    def cut(self, *, epochs: int) -> None:
        """Keep only the rows of the first ``epochs`` epochs."""
        write_text(self.path, "".join(_line(row) for row in self.rows() if row["epoch"] < epochs))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(replace_infinite(row), allow_nan=False) + "\n"


def replace_infinite(value: Any) -> Any:
    """Replace numbers that are not finite by None, as JSON needs."""
    if isinstance(value, Mapping):
        return {key: replace_infinite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [replace_infinite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
