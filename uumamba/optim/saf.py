"""Sharpness-aware training for free: close to one's own answers of some epochs ago."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from uumamba.optim.outputs import logits_of
from uumamba.optim.past_logits import PastLogits
from uumamba.optim.past_outputs import check_pull, learned_weights, softened_divergence
from uumamba.runtime.errors import UsageError
from uumamba.types import Batch


class SAF(nn.Module):
    r"""An objective for classification whose trajectory stays flat: the loss, and the distance to past answers.

    .. math::
        L = \mathrm{loss}(z, y) + \lambda \tau^2\, \mathrm{mean}\ \mathrm{KL}\big(
            \mathrm{softmax}(z^{(e - l)} / \tau) \,\Vert\, \mathrm{softmax}(z / \tau)\big)

    with z the logits of a sample now and :math:`z^{(e-l)}` those it had ``lag`` epochs ago, whatever its augmentation
    was. One pass a step, and a float16 table of ``samples * (lag + 1) * (classes + 2)`` numbers. Batches carry
    ``sample_id``, int64 ``(batch,)`` from 0, the same for a sample in every epoch. The trainer calls
    :meth:`begin_epoch`; elsewhere the loop does.

    Edge cases. A sample whose row is not of the epoch asked for (not drawn then, not finite then, or overwritten by a
    run that was killed) has no divergence, instead of a wrong one, and counts in the mean as 0. A sample has its first
    answer of an epoch kept: the second pass of a climber, at other weights, and a sample that a sampler draws twice
    change no row. ``objective.eval()`` gives the loss alone and keeps nothing. An epoch before the last one begins a
    new run and an empty table; so does a run without :meth:`load_state_dict`, also where the file was there before.

    Several processes: every rank gathers ids and logits of all and writes them all, so each has the whole table, and a
    reshuffling ``DistributedSampler`` finds every sample's past. Each rank maps a file of its own, ``saf.rank0.npy``
    for ``saf.npy``; make the objective after ``init_process_group``.

    Args:
        loss: called as ``loss(logits, label)``; its own parameters may learn.
        samples: size of the training set; ids are below it.
        classes: logits a sample.
        table: file to map the table from, where it outgrows memory; None keeps it there.
        lag: epochs to look back, at least 1.
        weight: :math:`\lambda`.
        temperature: :math:`\tau`.
        start_epoch: the first with a divergence, counted from 0.
        save_table: keep the table in ``state_dict``, so that resuming equals never stopping bit for bit. Without it a
            resumed run goes on with the file's rows, as far as they are of the right epochs, or with none.

    Raises:
        ValueError: an option is out of range.
        UsageError: a call had logits of voxels, of another number of classes, no sample ids or ids out of range, or
            came before :meth:`begin_epoch`; or the file is no such table.
        UumambaError: the disk has too little room for the table.

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
        Differs from the paper: rows know their epoch; its code never exchanges them between processes, starts the
        divergence one epoch after ``start_epoch``, and keeps the last answer of an epoch.
    """

    def __init__(
        self,
        loss: nn.Module,
        *,
        samples: int,
        classes: int,
        table: Path | str | None = None,
        lag: int = 3,
        weight: float = 0.3,
        temperature: float = 5.0,
        start_epoch: int = 5,
        save_table: bool = True,
    ) -> None:
        super().__init__()
        check_pull(weight=weight, temperature=temperature)
        for name, value, least in (("samples", samples, 1), ("classes", classes, 2), ("lag", lag, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if start_epoch < 0:
            raise ValueError(f"start_epoch must not be negative, got {start_epoch}")
        self.loss = loss
        self.samples, self.classes, self.lag = samples, classes, lag
        self.weight, self.temperature, self.start_epoch = weight, temperature, start_epoch
        self.save_table = save_table
        self.epoch: int | None = None
        self._ranks = _ranks()
        path = None if table is None else _of_this_rank(Path(table))
        self._past = PastLogits(samples=samples, classes=classes, epochs=lag + 1, path=path)

    def begin_epoch(self, epoch: int) -> None:
        """Say which epoch the coming batches are of; once or more at its start, also where a run is resumed in it."""
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        if self.epoch is None or epoch < self.epoch:
            self._past.clear()
        self.epoch = epoch

    def forward(self, net: nn.Module, batch: Batch) -> Tensor:
        """Scalar of one batch with ``image``, ``label`` and ``sample_id``."""
        logits = logits_of(net(batch["image"]))
        self._check_logits(logits)
        loss: Tensor = self.loss(logits, batch["label"])
        if not self.training:
            return loss
        ids, epoch = self._ids_of(batch, logits), self._epoch_begun()
        self._keep(ids, logits.detach(), epoch)
        if self.weight == 0 or epoch < self.start_epoch:
            return loss
        past, known = (found.to(logits.device) for found in self._past.read(ids.cpu(), epoch=epoch - self.lag))
        divergence = softened_divergence(logits, past, temperature=self.temperature)
        return loss + self.weight * (divergence * known).mean()

    def get_extra_state(self) -> dict[str, Any]:
        """The epoch, and the table unless it was left out."""
        return {"epoch": self.epoch} | (self._past.state_dict() if self.save_table else {})

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up where another run stopped."""
        self.epoch = state["epoch"]
        if "logits" in state:
            self._past.load_state_dict(state)
        else:
            self._past.forget_after(-1 if self.epoch is None else self.epoch)

    def loss_weights(self) -> dict[str, float]:
        """The learned weights of the loss; empty where it has none."""
        return learned_weights(self.loss)

    def _keep(self, ids: Tensor, logits: Tensor, epoch: int) -> None:
        """Write the rows of all ranks; they decide by what all of them hold, so all gather or none does."""
        if _ranks() != self._ranks:
            raise UsageError(
                f"SAF was made with {self._ranks} processes and is called with {_ranks()}; make it after "
                "init_process_group."
            )
        if self._ranks > 1:
            counts = _counts(ids)
            ids = _of_all_ranks(ids, counts)
        rows = ids.cpu()
        if self._past.holds(rows, epoch=epoch).all():
            return
        if self._ranks > 1:
            logits = _of_all_ranks(logits, counts)
        self._past.write(rows, logits.float().cpu(), epoch=epoch)

    def _epoch_begun(self) -> int:
        if self.epoch is None:
            raise UsageError(
                "SAF does not know the epoch; call objective.begin_epoch(epoch) when one starts, as the trainer does."
            )
        return self.epoch

    def _check_logits(self, logits: Tensor) -> None:
        if logits.ndim > 2:
            raise UsageError(
                f"SAF keeps the logits of whole samples and got logits of shape {tuple(logits.shape)}: a table of "
                "every voxel would fill disks, and patches cut at random find no voxel again; use MESA, whose teacher "
                "needs no table."
            )
        if logits.shape[1] != self.classes:
            raise UsageError(f"SAF was made for {self.classes} classes and got {logits.shape[1]}; correct classes.")

    def _ids_of(self, batch: Batch, logits: Tensor) -> Tensor:
        ids = batch.get("sample_id")
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.shape != logits.shape[:1]:
            found = f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
            raise UsageError(
                f'SAF finds past logits by batch["sample_id"], int64 of shape ({logits.shape[0]},), and got {found}; '
                "let the data set return each sample's index."
            )
        if ids.numel() and not (ids.min() >= 0 and ids.max() < self.samples):
            raise UsageError(
                f"SAF was made for {self.samples} samples and got sample ids from {ids.min()} to {ids.max()}; give "
                "samples as the size of the training set, and ids from 0."
            )
        return ids


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _of_this_rank(path: Path) -> Path:
    return path if _ranks() == 1 else path.with_name(f"{path.stem}.rank{dist.get_rank()}{path.suffix}")


def _counts(rows: Tensor) -> list[int]:
    """How many rows each rank has."""
    mine = torch.tensor([rows.shape[0]], device=rows.device)
    found = [torch.empty_like(mine) for _ in range(_ranks())]
    dist.all_gather(found, mine)
    return [int(count) for count in found]


def _of_all_ranks(rows: Tensor, counts: list[int]) -> Tensor:
    """The rows of every rank in order of rank, which need not have equally many."""
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    found = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(found, padded)
    return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])
