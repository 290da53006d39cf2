"""A table of each sample's logits in the latest epochs, in memory or in a file that is mapped into it."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uumamba.runtime.errors import UsageError, UumambaError
from uumamba.runtime.files import make_folder, whole_file

LARGEST = float(torch.finfo(torch.float16).max)
NEVER = 0
"""The mark of a row that nobody wrote; others carry their epoch plus one, so that empty memory is an empty table."""


class PastLogits:
    """Logits of each sample in the latest epochs; every row carries the epoch that it was written in.

    A row is found by sample and epoch, and an epoch takes the place of the one ``epochs`` before it. A row of another
    epoch than the one asked for is unknown: never written, or overwritten by a run that was killed later. Logits are
    float16, clamped to its range; a row with one that is not finite is not written.

    The file is a ``.npy`` (never a pickle) of records ``epoch`` (plus one; 0 is never) and ``logits``. All of its room
    on the disk is taken when it is made, because a mapped file that meets a full disk kills the process.

    Args:
        samples: rows of the table.
        classes: logits a row.
        epochs: how many are held at once.
        path: of the file; one that is there must be such a table and keeps its rows. None stays in memory.

    Raises:
        UsageError: there is a file that is no such table, or the path cannot be written.
        UumambaError: the disk has too little room.

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
        self.path = None if path is None else Path(path)
        if self.path is None or not self.path.exists():
            self.clear()
        else:
            self._take(_open_file(self.path, self.shape))

    def clear(self) -> None:
        """Forget everything, and take room for all of it."""
        if self.path is None:
            self._take(torch.zeros(_bytes(self.shape), dtype=torch.uint8))
        else:
            self.path.unlink(missing_ok=True)
            _make_file(self.path, self.shape)
            self._take(_open_file(self.path, self.shape))

    def read(self, samples: Tensor, *, epoch: int) -> tuple[Tensor, Tensor]:
        """Float32 logits ``(n, classes)`` of samples ``(n,)`` in an epoch, 0 where unknown; and which are known."""
        slot = epoch % self.shape[1]
        known = self._marks[samples, slot] == epoch + 1 if epoch >= 0 else torch.zeros_like(samples, dtype=torch.bool)
        return self._logits[samples, slot].float().where(known[:, None], torch.zeros(())), known

    def write(self, samples: Tensor, logits: Tensor, *, epoch: int) -> None:
        """Keep the logits of samples that have none of this epoch yet: the first that come stay."""
        first = dict(zip(samples.flip(0).tolist(), range(len(samples) - 1, -1, -1), strict=True))
        order = torch.tensor(list(first.values()), dtype=torch.long)
        order = order[logits[order].isfinite().all(1) & ~self.holds(samples[order], epoch=epoch)]
        rows, slot = samples[order], epoch % self.shape[1]
        self._marks[rows, slot] = NEVER  # until the row is whole: the process may be killed in between
        self._logits[rows, slot] = logits[order].clamp(-LARGEST, LARGEST).half()
        self._marks[rows, slot] = epoch + 1

    def holds(self, samples: Tensor, *, epoch: int) -> Tensor:
        """Which samples have logits of this epoch."""
        return self._marks[samples, epoch % self.shape[1]] == epoch + 1

    def forget_after(self, epoch: int) -> None:
        """Forget epochs later than this one, which a run that was killed has left."""
        self._marks[self._marks > epoch + 1] = NEVER

    def state_dict(self) -> dict[str, Any]:
        """The table's own memory, uncopied."""
        return {"marks": self._marks, "logits": self._logits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over another table's rows.

        Raises:
            ValueError: it is of another size.
        """
        found = tuple(state["logits"].shape)
        if found != self.shape:
            raise ValueError(
                f"the table of past logits must have (samples, epochs, classes) {self.shape}, the state has {found}"
            )
        self._marks.copy_(state["marks"])
        self._logits.copy_(state["logits"])

    def _take(self, content: Tensor) -> None:
        samples, epochs, classes = self.shape
        rows = content.view(torch.float16).view(samples, epochs, -1)
        self._marks = rows.view(torch.int32)[..., 0]
        self._logits = rows[..., 2 : 2 + classes]


def _bytes(shape: tuple[int, int, int]) -> int:
    """Of the rows: an int32, and float16 logits up to a multiple of four bytes."""
    samples, epochs, classes = shape
    return samples * epochs * (4 + 2 * classes + 2 * (classes % 2))


def _header(shape: tuple[int, int, int]) -> bytes:
    """What a ``.npy`` file of version 1 starts with; its length is a multiple of 64."""
    samples, epochs, classes = shape
    fields: list[tuple[Any, ...]] = [("epoch", "<i4"), ("logits", "<f2", (classes,))]
    fields += [("", "|V2")] * (classes % 2)
    text = repr({"descr": fields, "fortran_order": False, "shape": (samples, epochs)})
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("latin1")


def _make_file(path: Path, shape: tuple[int, int, int]) -> None:
    header = _header(shape)
    needed, free = len(header) + _bytes(shape), shutil.disk_usage(make_folder(path.parent)).free
    problem = f"The table of past logits {path} needs {needed} bytes and its disk has {free} left"
    cure = "choose another disk, or a smaller lag"
    if needed > free:
        raise UumambaError(f"{problem}; {cure}.")
    try:
        with whole_file(path) as unfinished, unfinished.open("wb") as stream:
            stream.write(header)
            stream.flush()
            _take_room(stream.fileno(), needed)
    except OSError as error:
        raise UumambaError(f"{problem}, of which this process may not have them all ({error}); {cure}.") from error


def _take_room(file: int, size: int) -> None:
    try:
        os.posix_fallocate(file, 0, size)
    except (AttributeError, OSError) as error:  # a system or file system that cannot promise room
        if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.truncate(file, size)


def _open_file(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """The rows, mapped: what is written to them is written to the file."""
    header = _header(shape)
    size = len(header) + _bytes(shape)
    with path.open("rb") as stream:
        if stream.read(len(header)) != header or path.stat().st_size != size:
            samples, epochs, classes = shape
            raise UsageError(
                f"{path} is no table of {samples} samples, {epochs} epochs and {classes} classes; remove it if it is "
                "of another run, or give another path."
            )
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)[len(header) :]
