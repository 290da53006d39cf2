"""A run's folder: one process at a time, three checkpoints, and no crash that leaves it without one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from uumamba.runtime.errors import UsageError
from uumamba.runtime.files import make_folder, room_for, write_json
from uumamba.runtime.locks import locked
from uumamba.training.checkpoint import Checkpoint, DamagedCheckpointError, read_checkpoint, save_checkpoint
from uumamba.training.run_log import RunLog

LAST, PREVIOUS, BEST, DAMAGED = (f"{name}.safetensors" for name in ("last", "previous", "best", "damaged"))


class RunFolder:
    """``last``, ``previous`` and ``best`` checkpoints, ``metrics.jsonl``, ``progress.png`` and ``config.json``.

    Args:
        path: made where it is not there.

    Raises:
        UsageError: it cannot be made.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = make_folder(path)
        self.log = RunLog(self.path / "metrics.jsonl")
        self.plot = self.path / "progress.png"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process out, and clear away what a killed one left unfinished.

        Raises:
            UsageError: another process is training here, or the folder may not be written to.
        """
        with locked(self.path, doing="training"):
            for left_over in self.path.glob(".unfinished-*"):
                left_over.unlink()
            yield

    def save(self, checkpoint: Checkpoint, *, best: bool = False) -> None:
        """Write ``best`` if it is, then turn ``last`` into ``previous`` and write ``last``.

        In this order a kill between two of them repeats the epoch after a resume and writes the same ``best`` again.
        """
        if best:
            save_checkpoint(self.path / BEST, checkpoint)
        save_checkpoint(self.path / LAST, checkpoint, before_replacing=self._keep_previous)

    def latest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The newest whole checkpoint, None where there never was one; what was damaged is said and set aside.

        Raises:
            DamagedCheckpointError: no whole one is left.
        """
        found = [self.path / name for name in (LAST, PREVIOUS) if (self.path / name).is_file()]
        for path in found:
            try:
                return read_checkpoint(path)
            except DamagedCheckpointError as error:
                if path == found[-1]:
                    raise
                say(f"{error} Going on from {PREVIOUS}; the damaged file is now {DAMAGED}.")
                # Left in its place it would take the whole one's at the next save.
                path.replace(self.path / DAMAGED)
        return None

    def has_checkpoint(self) -> bool:
        """Whether a run was begun here."""
        return any((self.path / name).is_file() for name in (LAST, PREVIOUS))

    def write_config(self, config: Any) -> None:
        """Keep the configuration beside the checkpoints, for people."""
        if config is not None:
            with room_for(self.path / "config.json"):
                write_json(self.path / "config.json", config)

    def _keep_previous(self) -> None:
        if (self.path / LAST).is_file():
            (self.path / LAST).replace(self.path / PREVIOUS)


def refuse_other_config(stored: Any, given: Any, *, complete: Callable[[Any], Any] | None = None) -> None:
    """Resuming under another configuration would make a run that no configuration describes.

    Args:
        stored: of the checkpoint.
        given: of the run that would go on from it.
        complete: adds to the stored one the keys that are new in the program, at their defaults.

    Raises:
        UsageError: they differ; the message lists where, as dotted keys.

    Example:
        >>> refuse_other_config({"optim": {"rho": 0.05}}, {"optim": {"rho": 0.1}})
        Traceback (most recent call last):
            ...
        uumamba.runtime.errors.UsageError: The run was begun with another configuration:
          optim.rho: 0.05 there, 0.1 here
        Resume with the old one, choose another folder, or go on all the same with --force (fit(force=True)).
    """
    before, now = _dotted(stored if complete is None else complete(stored)), _dotted(given)
    absent = "absent"
    different = [
        f"\n  {key}: {before.get(key, absent)} there, {now.get(key, absent)} here"
        for key in sorted(before.keys() | now.keys())
        if before.get(key, absent) != now.get(key, absent)
    ]
    if different:
        raise UsageError(
            f"The run was begun with another configuration:{''.join(different)}\n"
            "Resume with the old one, choose another folder, or go on all the same with --force (fit(force=True))."
        )


def _dotted(config: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dictionaries by their dotted key."""
    if not isinstance(config, dict) or not config:
        return {prefix or "config": config}
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        leaves |= _dotted(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves
