"""``metrics.jsonl``: one row an epoch, whole after any crash."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uumamba.runtime.files import room_for, write_text


class RunLog:
    """Rows of numbers, one JSON object a line.

    A number that is not finite is written as null. A row torn by a crash, and what follows it, does not count.

    Args:
        path: the file; absent means no rows.

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
        """Add a row, which is on the disk when this returns.

        Raises:
            UumambaError: the disk is full; what was torn does not count as a row.
        """
        with room_for(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write(_line(row))
            stream.flush()
            os.fsync(stream.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """Every whole row."""
        if not self.path.exists():
            return []
        rows: list[dict[str, Any]] = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not line.endswith("\n") or not isinstance(row, dict):
                break
            rows.append(row)
        return rows

    def cut(self, *, epochs: int) -> None:
        """Keep the rows of the first ``epochs`` epochs: what a checkpoint of that moment knows of."""
        with room_for(self.path):
            write_text(self.path, "".join(_line(row) for row in self.rows() if row["epoch"] < epochs))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(_finite(row), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
