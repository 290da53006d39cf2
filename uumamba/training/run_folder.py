"""Run folder: checkpoints and a log, readable after any crash."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from uumamba.runtime.errors import require
from uumamba.runtime.files import lock_folder, make_folder, open_own, report_write_errors, write_json, write_text
from uumamba.runtime.text_files import parse_json, read_limited
from uumamba.runtime.tree import join_keys
from uumamba.training.checkpoint import Checkpoint, DamagedCheckpointError, read_checkpoint, save_checkpoint

RESUME = "--resume (fit(resume=True))"
LAST, PREVIOUS, BEST, DAMAGED = (f"{name}.safetensors" for name in ("last", "previous", "best", "damaged"))


class RunLog:
    """``metrics.jsonl``: one row of numbers per epoch, as JSON lines.

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
        with report_write_errors(self.path), open_own(self.path, os.O_WRONLY | os.O_APPEND) as stream:
            line = _line(row).encode()
            while line:  # a full disk takes a part, and then none
                line = line[stream.write(line) :]
            os.fsync(stream.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows before the first incomplete one."""
        rows: list[dict[str, Any]] = []
        text = read_limited(self.path).decode(errors="replace") if self.path.exists() else ""
        for line in text.splitlines(keepends=True):
            try:
                row = parse_json(line)
            except ValueError:
                break
            if not line.endswith("\n") or not isinstance(row, dict):
                break
            rows.append(row)
        return rows

    def cut(self, *, epochs: int) -> None:
        """Keep only the rows of the first ``epochs`` epochs."""
        write_text(self.path, "".join(_line(row) for row in self.rows() if row["epoch"] < epochs))


class RunFolder:
    """Files of one run.

    These are the checkpoints ``last``, ``previous`` and ``best``, ``metrics.jsonl``, ``progress.png`` and
    ``config.json``.

    Args:
        path: the folder; created when training begins.
        config: JSON values, stored in the checkpoints and compared when the run is resumed.
        complete_config: fills keys that an older program did not store, before the comparison.
        save_every_minutes: time after which a checkpoint is also written between two steps, by a monotonic clock; None
            writes checkpoints at the ends of epochs only.

    Raises:
        UsageError: ``save_every_minutes`` is negative.
        TypeError: the configuration is not JSON.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        config: Any = None,
        complete_config: Callable[[Any], Any] | None = None,
        save_every_minutes: float | None = 10.0,
    ) -> None:
        require(
            save_every_minutes is None or save_every_minutes >= 0,
            "save_every_minutes",
            got=save_every_minutes,
            expected="a number of at least 0, or None to save at the ends of epochs only",
        )
        self.path = Path(path)
        self.config = json.loads(json.dumps(config))
        self.complete_config = complete_config
        self.save_every_minutes = save_every_minutes
        self.log = RunLog(self.path / "metrics.jsonl")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder and remove unfinished files of a killed process.

        Raises:
            UsageError: another process trains here, or the folder cannot be created.
        """
        make_folder(self.path)
        with lock_folder(self.path, doing="training"):
            for unfinished in self.path.glob(".unfinished-*"):
                unfinished.unlink()
            yield

    def save(self, checkpoint: Checkpoint, *, best: bool = False) -> None:
        """Write ``last``, after ``best`` if requested; the old ``last`` becomes ``previous``.

        ``best`` comes first, so that a run killed in between repeats the epoch and writes the same ``best`` again.
        """
        if best:
            save_checkpoint(self.path / BEST, checkpoint)
        save_checkpoint(self.path / LAST, checkpoint, before_replacing=self._keep_previous)

    def latest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """Return the newest undamaged checkpoint, or None without any.

        A damaged ``last`` is reported and renamed.

        Raises:
            DamagedCheckpointError: all checkpoints are damaged.
        """
        paths = list_checkpoints(self.path)
        for path in paths:
            try:
                return read_checkpoint(path)
            except DamagedCheckpointError as error:
                if path == paths[-1]:
                    raise
                say(f"{error} Continuing from {PREVIOUS}; the damaged file is now {DAMAGED}.")
                # Under the name LAST it would replace the undamaged checkpoint at the next save.
                path.replace(self.path / DAMAGED)
        return None

    def begin(self, *, epochs: int) -> list[dict[str, Any]]:
        """Write the configuration, and cut the log to ``epochs`` epochs.

        Returns:
            The remaining rows. The checkpoint does not include later ones.
        """
        if self.config is not None:
            write_json(self.path / "config.json", self.config)
        self.log.cut(epochs=epochs)
        return self.log.rows()

    def _keep_previous(self) -> None:
        if (self.path / LAST).is_file():
            (self.path / LAST).replace(self.path / PREVIOUS)


def list_checkpoints(folder: Path) -> list[Path]:
    """List a run folder's resumable checkpoints, newest first."""
    return [folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file()]


def check_new_run(folder: Path) -> None:
    """Raise if a new run's folder has a checkpoint.

    Raises:
        UsageError: a run was started there.
    """
    require(
        not list_checkpoints(folder),
        str(folder),
        got="a checkpoint",
        expected="a folder without a checkpoint",
        fix=f"continue the run with {RESUME}, or choose another folder",
    )


def check_same_config(stored: Any, given: Any, *, complete: Callable[[Any], Any] | None = None) -> None:
    """Check that a resumed run keeps its configuration.

    Args:
        stored: configuration of the checkpoint.
        given: configuration of the resumed run.
        complete: fills keys that an older program did not store with their defaults.

    Raises:
        UsageError: the configurations differ; ``got`` holds the different values by dotted key.

    Example:
        >>> check_same_config({"optim": {"rho": 0.05}}, {"optim": {"rho": 0.1}})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        uumamba.runtime.errors.UsageError: config: got {'optim.rho': 0.1}, expected {'optim.rho': 0.05} as ...
    """
    old, new = join_keys(stored if complete is None else complete(stored)), join_keys(given)
    different = [key for key in sorted(old | new) if old.get(key, "absent") != new.get(key, "absent")]
    require(
        not different,
        "config",
        got={key: new.get(key, "absent") for key in different},
        expected=f"{ {key: old.get(key, 'absent') for key in different} } as at the start of the run",
        fix="resume with that configuration, choose another folder, or add --force (fit(force=True))",
    )


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(replace_infinite(row), allow_nan=False) + "\n"


def replace_infinite(value: Any) -> Any:
    """Replace numbers that are not finite by None, as JSON needs."""
    if isinstance(value, Mapping):
        return {key: replace_infinite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [replace_infinite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def finite_scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a row, without its epoch.

    Numbers of nested rows are named ``outer/inner``.

    Example:
        >>> finite_scalars({"epoch": 3, "loss": 0.5, "dice": None, "loss_weights": {"region": 1.0}})
        {'loss': 0.5, 'loss_weights/region': 1.0}
    """
    values = join_keys({key: value for key, value in row.items() if key != "epoch"}, separator="/")
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def end_times(rows: Sequence[Mapping[str, Any]], now: float) -> list[float]:
    """Return the end of each epoch, for a record written later.

    The times are counted back from ``now`` by the epochs' seconds.

    Example:
        >>> end_times([{"seconds": 4.0}, {"seconds": 3.0}], now=100.0)
        [97.0, 100.0]
    """
    times = [now]
    for row in reversed(rows[1:]):
        times.append(times[-1] - float(row.get("seconds") or 0.0))
    return times[::-1] if rows else []
