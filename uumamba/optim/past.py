"""Past outputs of a network: a table of them, and their divergence."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from uumamba.runtime.errors import UsageError, UumambaError, require
from uumamba.runtime.files import make_folder, report_write_errors, whole_file

LARGEST = float(torch.finfo(torch.float16).max)
NEVER = 0  # mark of an empty row; others hold their epoch plus one, so that zeroed memory is an empty table


def softened_divergence(logits: Tensor, past: Tensor, *, temperature: float) -> Tensor:
    r"""Kullback-Leibler divergence of softened outputs from past ones.

    .. math:: \tau^2\, \mathrm{KL}(\mathrm{softmax}(\mathrm{past} / \tau) \,\Vert\, \mathrm{softmax}(z / \tau))

    The sum is over classes, one value per sample or voxel, in at least float32. Logarithms are taken of logits and
    never of probabilities, which underflow. A class whose past probability is 0, such as one masked by ``-inf``, adds
    0.

    Args:
        logits: z, ``(batch, classes, *spatial)``.
        past: of the same shape, without a gradient.
        temperature: divides the logits; the square in front keeps the gradient's size nearly independent of it.

    Returns:
        ``(batch, *spatial)``.

    Example:
        >>> softened_divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[99.0, 0.0]]), temperature=1.0)  # log 2
        tensor([0.6931])
    """
    now, then = (
        (tensor.to(torch.promote_types(tensor.dtype, torch.float32)) / temperature).log_softmax(1)
        for tensor in (logits, past)
    )
    probability = then.exp()
    return temperature**2 * torch.where(probability == 0, 0.0, probability * (then - now)).sum(1)


def check_divergence_options(*, weight: float, temperature: float) -> None:
    """Raise where the weight or the temperature is out of range."""
    require(0 <= weight < float("inf"), "weight", got=weight, expected="a finite number of at least 0")
    require(0 < temperature < float("inf"), "temperature", got=temperature, expected="a finite positive number")


def learned_weights(loss: nn.Module) -> dict[str, float]:
    """Read the learned weights of a loss; empty without ``weights()`` in it."""
    for module in loss.modules():
        weights = getattr(module, "weights", None)
        if callable(weights):
            return {str(name): float(value) for name, value in weights().items()}
    return {}


class PastLogits:
    """Table of each sample's logits in the latest epochs.

    In memory or in a mapped file. A row is found by sample and epoch, and an epoch takes the place of the one
    ``epochs`` before it. Every row carries its epoch, so a row of another epoch than the requested one is unknown:
    never written, or overwritten by a run that was killed later. Logits are float16, clamped to its range; a row with
    one that is not finite is not written.

    The file is a ``.npy`` (never a pickle) of records ``epoch`` (plus one; 0 is never) and ``logits``. All of its disk
    space is allocated when it is made, because a mapped file that meets a full disk kills the process.

    Args:
        samples: rows of the table.
        classes: logits per row.
        epochs: number of epochs held at once.
        path: the file; an existing one must be such a table and keeps its rows. None: in memory.

    Raises:
        UsageError: the file is no such table, or the path cannot be written.
        UumambaError: the disk has too little space.

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

    def clear(self) -> None:
        """Make every row unknown."""
        self._marks.fill_(NEVER)

    def read(self, samples: Tensor, *, epoch: int) -> tuple[Tensor, Tensor]:
        """Read the logits of samples in an epoch.

        Args:
            samples: ``(n,)``.
            epoch: unknown for all samples where negative.

        Returns:
            Float32 logits ``(n, classes)``, 0 where unknown, and a mask ``(n,)`` of the known ones.
        """
        known = self.holds(samples, epoch=epoch) if epoch >= 0 else torch.zeros_like(samples, dtype=torch.bool)
        return self._logits[samples, epoch % self.shape[1]].float().where(known[:, None], torch.zeros(())), known

    def write(self, samples: Tensor, logits: Tensor, *, epoch: int) -> None:
        """Write logits of samples that have none in this epoch."""
        first = dict(zip(samples.flip(0).tolist(), range(len(samples) - 1, -1, -1), strict=True))
        order = torch.tensor(list(first.values()), dtype=torch.long)
        order = order[logits[order].isfinite().all(1) & ~self.holds(samples[order], epoch=epoch)]
        rows, slot = samples[order], epoch % self.shape[1]
        self._marks[rows, slot] = NEVER  # until the row is whole: the process may be killed in between
        self._logits[rows, slot] = logits[order].clamp(-LARGEST, LARGEST).half()
        self._marks[rows, slot] = epoch + 1

    def holds(self, samples: Tensor, *, epoch: int) -> Tensor:
        """Return a mask of samples whose logits of this epoch are known."""
        return self._marks[samples, epoch % self.shape[1]] == epoch + 1

    def forget_after(self, epoch: int) -> None:
        """Make later epochs' rows unknown, which a killed run has left."""
        self._marks[self._marks > epoch + 1] = NEVER

    def state_dict(self) -> dict[str, Any]:
        """Return the table's own memory, not copied."""
        return {"marks": self._marks, "logits": self._logits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy another table's rows.

        Raises:
            UsageError: it has another size.
        """
        found = tuple(state["logits"].shape)
        require(found == self.shape, "logits", got=found, expected=f"(samples, epochs, classes) {self.shape}")
        self._marks.copy_(state["marks"])
        self._logits.copy_(state["logits"])


def _map_file(path: Path, shape: tuple[int, int], kind: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Map a table's file into memory; make it where there is none."""
    if not path.exists():
        _make_file(path, shape, kind)
    rows: np.ndarray[Any, Any] = np.zeros(0)
    with suppress(ValueError):  # no .npy, or a shorter one than its header says, which r+ would extend
        np.lib.format.open_memmap(path, mode="r")
        rows = np.lib.format.open_memmap(path, mode="r+")
    if rows.shape != shape or rows.dtype != kind:
        raise UsageError(
            "table",
            got=path,
            expected=f"a table of {shape[0]} samples, {shape[1]} epochs and {kind['logits'].shape[0]} classes",
            fix="remove the file if it is of another run, or give another path",
        )
    return rows


def _make_file(path: Path, shape: tuple[int, int], kind: np.dtype[Any]) -> None:
    needed, free = shape[0] * shape[1] * kind.itemsize, shutil.disk_usage(make_folder(path.parent)).free
    if needed > free:
        raise UumambaError(
            f"{path} needs {needed} bytes and its disk has {free} left; choose another disk or a smaller lag."
        )
    with report_write_errors(path), whole_file(path) as unfinished:
        np.lib.format.open_memmap(unfinished, mode="w+", dtype=kind, shape=shape)
        with unfinished.open("r+b") as stream:
            if hasattr(os, "posix_fallocate"):  # macOS has none
                os.posix_fallocate(stream.fileno(), 0, unfinished.stat().st_size)
