"""Table of a network's past outputs."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uumamba.runtime.errors import require
from uumamba.runtime.files import make_folder, report_write_errors, whole_file

LARGEST = float(torch.finfo(torch.float16).max)
EMPTY = 0  # mark of a row without logits; other marks are the epoch plus 1, so zeroed memory is an empty table


class PastLogits:
    """Table of each sample's logits in the latest epochs.

    The table is in memory or in a mapped file. A row is found by sample and epoch, and an epoch overwrites the epoch
    ``epochs`` before it. Every row stores its epoch, so a row of a different epoch is unknown:
    never written, or overwritten by a run that was killed later. Logits are float16, clamped to its range; a row with
    a value that is not finite is not written.

    The file is a ``.npy`` (never a pickle) of records ``epoch`` (plus 1; 0 in a row without logits) and ``logits``. All
    of its disk space is allocated when it is made, because a mapped file on a full disk kills the process.

    Args:
        samples: rows of the table.
        classes: logits per row.
        epochs: number of epochs held at once.
        path: the file; an existing file must be a table of this size and keeps its rows. None: in memory.

    Raises:
        UsageError: the file is no such table, the path cannot be written, or the disk has too little space.

    Example:
        >>> table = PastLogits(samples=3, classes=2, epochs=4)
        >>> table.write(torch.tensor([2]), torch.tensor([[1.0, -1.0]]), epoch=5)
        >>> table.read(torch.tensor([0, 2]), epoch=5)
        (tensor([[ 0.,  0.],
                [ 1., -1.]]), tensor([False,  True]))
        >>> table.read(torch.tensor([2]), epoch=1)[1]
        tensor([False])
    """

    def __init__(self, *, samples: int, classes: int, epochs: int, path: Path | str | None = None) -> None:
        self.shape = (samples, epochs, classes)
        # Aligned records have a multiple of four bytes, so both fields are tensors with whole strides.
        kind = np.dtype([("epoch", "<i4"), ("logits", "<f2", (classes,))], align=True)
        rows = np.zeros((samples, epochs), kind) if path is None else _map_file(Path(path), (samples, epochs), kind)
        self._marks = torch.from_numpy(rows["epoch"])
        self._logits = torch.from_numpy(rows["logits"])

    def read(self, samples: Tensor, *, epoch: int) -> tuple[Tensor, Tensor]:
        """Read the logits of samples in an epoch.

        Args:
            samples: ``(n,)``.
            epoch: unknown for all samples where negative.

        Returns:
            Float32 logits ``(n, classes)``, 0 in unknown rows, and a mask ``(n,)`` of known rows.
        """
        known = self.holds(samples, epoch=epoch) if epoch >= 0 else torch.zeros_like(samples, dtype=torch.bool)
        return self._logits[samples, epoch % self.shape[1]].float().where(known[:, None], torch.zeros(())), known

    def write(self, samples: Tensor, logits: Tensor, *, epoch: int) -> None:
        """Write logits of samples without a row of this epoch."""
        first = dict(zip(samples.flip(0).tolist(), range(len(samples) - 1, -1, -1), strict=True))
        order = torch.tensor(list(first.values()), dtype=torch.long)
        order = order[logits[order].isfinite().all(1) & ~self.holds(samples[order], epoch=epoch)]
        rows, slot = samples[order], epoch % self.shape[1]
        self._marks[rows, slot] = EMPTY  # until the row is complete: the process may be killed in between
        self._logits[rows, slot] = logits[order].clamp(-LARGEST, LARGEST).half()
        self._marks[rows, slot] = epoch + 1

    def holds(self, samples: Tensor, *, epoch: int) -> Tensor:
        """Return a mask of samples whose logits of this epoch are known."""
        return self._marks[samples, epoch % self.shape[1]] == epoch + 1

    def forget_after(self, epoch: int) -> None:
        """Make rows of later epochs unknown; -1 is before all epochs."""
        self._marks[self._marks > epoch + 1] = EMPTY

    def state_dict(self) -> dict[str, Any]:
        """Return the table's own memory without a copy."""
        return {"marks": self._marks, "logits": self._logits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy another table's rows.

        Raises:
            UsageError: the other table has another size.
        """
        found = tuple(state["logits"].shape)
        require(found == self.shape, "logits", got=found, expected=f"(samples, epochs, classes) {self.shape}")
        self._marks.copy_(state["marks"])
        self._logits.copy_(state["logits"])


def _map_file(path: Path, shape: tuple[int, int], kind: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Map a table's file into memory; make an absent file."""
    if not path.exists():
        _make_file(path, shape, kind)
    rows: np.ndarray[Any, Any] = np.zeros(0)
    with suppress(ValueError):  # no .npy, or shorter than in its header, which r+ would extend
        np.lib.format.open_memmap(path, mode="r")
        rows = np.lib.format.open_memmap(path, mode="r+")
    require(
        rows.shape == shape and rows.dtype == kind,
        "table",
        got=path,
        expected=f"a table of {shape[0]} samples, {shape[1]} epochs and {kind['logits'].shape[0]} classes",
        fix="remove the file of another run, or give another path",
    )
    return rows


def _make_file(path: Path, shape: tuple[int, int], kind: np.dtype[Any]) -> None:
    needed, free = shape[0] * shape[1] * kind.itemsize, shutil.disk_usage(make_folder(path.parent)).free
    require(
        needed <= free,
        "table",
        got=f"{path} on a disk with {free} free bytes",
        expected=f"a disk with {needed} free bytes",
        fix="give a path on another disk, or a smaller lag",
    )
    with report_write_errors(path), whole_file(path) as unfinished:
        np.lib.format.open_memmap(unfinished, mode="w+", dtype=kind, shape=shape)
        with unfinished.open("r+b") as stream:
            if hasattr(os, "posix_fallocate"):  # macOS has none
                os.posix_fallocate(stream.fileno(), 0, unfinished.stat().st_size)
