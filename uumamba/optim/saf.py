"""Sharpness-aware training for free (SAF), with outputs of earlier epochs."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from uumamba.optim.output_divergence import softened_divergence
from uumamba.optim.past import PastLogits
from uumamba.runtime.batch_parts import read_pair
from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.network import finest_logits, read_loss_weights
from uumamba.runtime.observer import Observer, Row, RunView
from uumamba.runtime.options import AtLeastTwo, NonNegative, NonNegativeInt, Positive, PositiveInt, check_options
from uumamba.types import Batch

PASSES_OF_AN_EPOCH = 20
"""Times that one epoch surely shows no sample, also with two passes per step and repeated samples."""


class SAF(nn.Module, Observer):
    r"""Loss plus divergence from past outputs, for classification.

    .. math::
        L = \mathrm{loss}(z, y) + \lambda \tau^2\, \mathrm{mean}\ \mathrm{KL}\big(
            \mathrm{softmax}(z^{(e - l)} / \tau) \,\Vert\, \mathrm{softmax}(z / \tau)\big)

    with z a sample's current logits and :math:`z^{(e-l)}` its logits ``lag`` epochs ago, under any augmentation. The
    divergence keeps the trajectory in flat regions. One pass per step, and a float16 table of ``samples * (lag + 1) *
    (classes + 2)`` numbers. Batches have ``sample_id``, int64 ``(batch,)`` from 0, the same for a sample in every
    epoch. In a trainer SAF calls :meth:`begin_epoch` as an observer of its run; other loops must call it.

    Edge cases. A sample whose row is not of the requested epoch (not drawn then, not finite then, or overwritten by a
    run that was killed) has no divergence and counts in the mean as 0. A sample keeps its first output of an epoch: the
    second pass of a sharpness-aware optimizer, at perturbed weights, and a sample that is drawn twice change no row.
    ``objective.eval()`` returns the loss without divergence and stores nothing. An epoch before the last one begins a
    new run with an empty table. So does a run without :meth:`load_state_dict`, also with an existing file.

    Several processes: every rank gathers and writes the ids and logits of all ranks, so each rank has the complete
    table, and a reshuffling ``DistributedSampler`` finds every sample's past. Each rank maps a file of its own,
    ``saf.rank0.npy`` for ``saf.npy``; make the objective after ``init_process_group``.

    Args:
        loss: called as ``loss(logits, label)``; its own parameters may learn.
        samples: size of the training set; ids are below it.
        classes: logits per sample.
        table: file of a memory-mapped table, for a table larger than memory; None keeps the table in memory.
        lag: epochs to look back, at least 1.
        weight: :math:`\lambda`.
        temperature: :math:`\tau`.
        start_epoch: first epoch with a divergence, counted from 0.
        save_table: keep the table in ``state_dict``, so that a resumed run equals an uninterrupted run bit for bit. If
            False, a resumed run uses the file's rows of the right epochs, if any.

    Raises:
        UsageError: an option is out of range, the file is no such table, or the disk has too little space for it. A
            call had logits of voxels or of another number of classes, no sample ids or ids out of range, or came before
            :meth:`begin_epoch`.

    Example:
        >>> net = nn.Linear(2, 3)
        >>> objective = SAF(nn.CrossEntropyLoss(), samples=2, classes=3, lag=1, start_epoch=1)
        >>> batch = {"image": torch.eye(2), "label": torch.tensor([0, 2]), "sample_id": torch.tensor([1, 0])}
        >>> for epoch in range(2):
        ...     objective.begin_epoch(epoch)
        ...     loss = objective(net, batch)
        >>> loss.shape
        torch.Size([])

    References:
        Du et al., *Sharpness-Aware Training for Free*, NeurIPS 2022, arXiv:2205.14083.
        Differs from the paper: rows store their epoch; the published code never exchanges rows between processes,
        starts the divergence one epoch after ``start_epoch``, and keeps the last output of an epoch.
    """

    may_fail = rank_zero_only = False

    @check_options
    def __init__(
        self,
        loss: nn.Module | Callable[..., Tensor],
        *,
        samples: PositiveInt,
        classes: AtLeastTwo,
        table: Path | str | None = None,
        lag: PositiveInt = 3,
        weight: NonNegative = 0.3,
        temperature: Positive = 5.0,
        start_epoch: NonNegativeInt = 5,
        save_table: bool = True,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.samples, self.classes, self.lag, self.start_epoch = samples, classes, lag, start_epoch
        self.weight, self.temperature = weight, temperature
        self.save_table = save_table
        self.epoch: int | None = None
        self._seen = 0  # samples since the epoch began, of all passes
        self._ranks = _count_ranks()
        path = None if table is None else Path(table)
        if path is not None and self._ranks > 1:
            path = path.with_name(f"{path.stem}.rank{dist.get_rank()}{path.suffix}")
        self._past = PastLogits(samples=samples, classes=classes, epochs=lag + 1, path=path)

    def begin_epoch(self, epoch: int) -> None:
        """Set the epoch of the next batches.

        To be called at the start of each epoch, and after a run is resumed within an epoch.
        """
        require(epoch >= 0, "epoch", got=epoch, expected="a number of at least 0")
        if self.epoch is None or epoch < self.epoch:
            self._past.forget_after(-1)
        self.epoch, self._seen = epoch, 0

    def on_epoch_start(self, run: RunView) -> None:
        """Set the epoch."""
        self.begin_epoch(run.epochs_done)

    def on_epoch_end(self, run: RunView, row: Row) -> None:
        """Add the learned weights of the loss terms."""
        row["loss_weights"] = self.loss_weights()

    def forward(self, net: nn.Module, batch: Batch | Sequence[Any]) -> Tensor:
        """Compute the loss of one batch.

        Args:
            net: the network.
            batch: a mapping with ``image``, ``label`` and ``sample_id``, or a triple in this order.
        """
        image, label, sample_id = _read_triple(batch)
        logits = finest_logits(net(image))
        self._check_logits(logits)
        loss: Tensor = self.loss(logits, label)
        if not self.training:
            return loss
        ids = self._read_ids(sample_id, logits)
        if self.epoch is None:
            raise UsageError(
                "epoch", got=None, expected="an epoch", fix="call objective.begin_epoch(epoch) before each epoch"
            )
        self._warn_of_no_epoch(len(ids))
        self._write_rows(ids, logits.detach(), self.epoch)
        if self.weight == 0 or self.epoch < self.start_epoch:
            return loss
        past, known = (found.to(logits.device) for found in self._past.read(ids.cpu(), epoch=self.epoch - self.lag))
        divergence = softened_divergence(past, logits, temperature=self.temperature)
        return loss + self.weight * (divergence * known).mean()

    def get_extra_state(self) -> dict[str, Any]:
        """Return the epoch, and the table unless ``save_table`` is False."""
        return {"epoch": self.epoch} | (self._past.state_dict() if self.save_table else {})

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Load the epoch, and the table if the state has one."""
        self.epoch = state["epoch"]
        if "logits" in state:
            self._past.load_state_dict(state)
        else:
            # A killed run may have written rows of later epochs.
            self._past.forget_after(-1 if self.epoch is None else self.epoch)

    def loss_weights(self) -> dict[str, float]:
        """Read the loss's learned weights; empty for a loss without them."""
        return read_loss_weights(self.loss)

    def _warn_of_no_epoch(self, samples: int) -> None:
        """Warn once of an epoch that surely ended long ago."""
        before, self._seen = self._seen, self._seen + samples
        if before <= PASSES_OF_AN_EPOCH * self.samples < self._seen:
            warnings.warn(
                f"SAF: epoch {self.epoch} has seen every sample {PASSES_OF_AN_EPOCH} times, so no output is new. Call "
                "objective.begin_epoch(epoch) before each epoch.",
                stacklevel=5,
            )

    def _write_rows(self, ids: Tensor, logits: Tensor, epoch: int) -> None:
        """Write the rows of all ranks; either all ranks gather or none."""
        require(
            _count_ranks() == self._ranks,
            "ranks",
            got=_count_ranks(),
            expected=f"the number of ranks at SAF's construction, {self._ranks}",
            fix="make SAF after init_process_group",
        )
        rows = _gather(ids.cpu())
        if not self._past.holds(rows, epoch=epoch).all():
            self._past.write(rows, _gather(logits.float().cpu()), epoch=epoch)

    def _check_logits(self, logits: Tensor) -> None:
        shape = tuple(logits.shape)
        require(
            len(shape) == 2,
            "net",
            got=f"logits of shape {shape}",
            expected="logits of shape (batch, classes)",
            fix="use MESA for voxels, which needs no table",
        )
        require(shape[1] == self.classes, "classes", got=self.classes, expected=f"the network's {shape[1]} classes")

    def _read_ids(self, ids: Any, logits: Tensor) -> Tensor:
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.shape != logits.shape[:1]:
            raise UsageError(
                "sample_id",
                got=f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else ids,
                expected=f"int64 of shape ({len(logits)},)",
                fix="return each sample's index from the data set, as sample_id or in (input, label, ids)",
            )
        wrong = ids[(ids < 0) | (ids >= self.samples)].tolist()
        require(
            not wrong, "sample_id", got=wrong, expected=f"ids from 0 to {self.samples - 1}, one per training sample"
        )
        return ids


def _read_triple(batch: Batch | Sequence[Any]) -> tuple[Any, Any, Any]:
    """Return input, label and ids, None if the batch has none."""
    if isinstance(batch, list | tuple) and len(batch) == 3:
        image, label, sample_id = batch
        return image, label, sample_id
    image, label = read_pair(batch, fix="write objective(net, (input, label, ids))")
    return image, label, batch.get("sample_id") if isinstance(batch, Mapping) else None


def _count_ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _gather(rows: Tensor) -> Tensor:
    """Concatenate the rows of all ranks, which may differ in number."""
    if _count_ranks() == 1:
        return rows
    found: list[Any] = [None] * _count_ranks()
    dist.all_gather_object(found, rows)
    return torch.cat(found)
