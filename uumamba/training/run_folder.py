"""Run folder of one process, with a readable checkpoint after any crash."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from uumamba.runtime.errors import require
from uumamba.runtime.files import make_folder, write_json
from uumamba.runtime.locks import lock_folder
from uumamba.runtime.tree import join_keys
from uumamba.training.checkpoint import Checkpoint, DamagedCheckpointError, read_checkpoint, save_checkpoint
from uumamba.training.run_log import RunLog

RESUME = "--resume (fit(resume=True))"
LAST, PREVIOUS, BEST, DAMAGED = (f"{name}.safetensors" for name in ("last", "previous", "best", "damaged"))


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
