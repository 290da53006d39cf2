"""Run folder: one process at a time, three checkpoints, and one of them readable after any crash."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from uumamba.runtime.errors import require
from uumamba.runtime.files import make_folder, write_json
from uumamba.runtime.locks import lock_folder
from uumamba.training.checkpoint import Checkpoint, DamagedCheckpointError, read_checkpoint, save_checkpoint
from uumamba.training.run_log import RunLog

RESUME = "--resume (fit(resume=True))"
LAST, PREVIOUS, BEST, DAMAGED = (f"{name}.safetensors" for name in ("last", "previous", "best", "damaged"))


class RunFolder:
    """``last``, ``previous`` and ``best`` checkpoints, ``metrics.jsonl``, ``progress.png`` and ``config.json``.

    Args:
        path: made if it does not exist.

    Raises:
        UsageError: it cannot be made.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = make_folder(path)
        self.log = RunLog(self.path / "metrics.jsonl")
        self.plot = self.path / "progress.png"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process out, and remove the unfinished files of a killed one.

        Raises:
            UsageError: another process trains here.
        """
        with lock_folder(self.path, doing="training"):
            for left_over in self.path.glob(".unfinished-*"):
                left_over.unlink()
            yield

    def save(self, checkpoint: Checkpoint, *, best: bool = False) -> None:
        """Write ``best`` if asked, then rename ``last`` to ``previous`` and write ``last``.

        In this order a run killed in between repeats the epoch when it is resumed, and writes the same ``best`` again.
        """
        if best:
            save_checkpoint(self.path / BEST, checkpoint)
        save_checkpoint(self.path / LAST, checkpoint, before_replacing=self._keep_previous)

    def latest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """Return the newest undamaged checkpoint, None if there never was one; report a damaged one and rename it.

        Raises:
            DamagedCheckpointError: all checkpoints are damaged.
        """
        found = list_checkpoints(self.path)
        for path in found:
            try:
                return read_checkpoint(path)
            except DamagedCheckpointError as error:
                if path == found[-1]:
                    raise
                say(f"{error} Going on from {PREVIOUS}; the damaged file is now {DAMAGED}.")
                # Under its old name it would replace the undamaged one at the next save.
                path.replace(self.path / DAMAGED)
        return None

    def write_config(self, config: Any) -> None:
        """Write the configuration beside the checkpoints, for people."""
        if config is not None:
            write_json(self.path / "config.json", config)

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
        fix=f"continue it with {RESUME}, or choose another folder",
    )


def check_same_config(stored: Any, given: Any, *, complete: Callable[[Any], Any] | None = None) -> None:
    """Raise if a run would be resumed under another configuration, so that no configuration describes it.

    Args:
        stored: of the checkpoint.
        given: of the run that would continue it.
        complete: fills keys of the stored one that are new in the program with their defaults.

    Raises:
        UsageError: they differ; ``got`` has the values that differ by dotted key.

    Example:
        >>> check_same_config({"optim": {"rho": 0.05}}, {"optim": {"rho": 0.1}})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        uumamba.runtime.errors.UsageError: config: got {'optim.rho': 0.1}, expected {'optim.rho': 0.05} as ...
    """
    differences = _find_differences(stored if complete is None else complete(stored), given, "")
    old, new = ({key: pair[side] for key, pair in differences.items()} for side in (0, 1))
    require(
        not differences,
        "config",
        got=new,
        expected=f"{old} as the run was begun",
        fix="resume with that configuration, choose another folder, or go on with --force (fit(force=True))",
    )


def _find_differences(old: Any, new: Any, key: str) -> dict[str, tuple[Any, Any]]:
    """Return pairs of values that differ, by dotted key."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {} if old == new else {key: (old, new)}
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted(old.keys() | new.keys()):
        child = f"{key}.{name}" if key else name
        found |= _find_differences(old.get(name, "absent"), new.get(name, "absent"), child)
    return found
