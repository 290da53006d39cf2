"""Batches of a keyed data set.

They are read in this process or in workers, with errors that name the case.
"""

import traceback
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from uumamba.data.worker_watch import FIX, WorkerWatch
from uumamba.runtime.errors import CaseError, UsageError, UumambaError, require
from uumamba.runtime.seeds import generator_for
from uumamba.types import Batch

Sample = dict[str, Any]


class KeyedDataset(Protocol):
    """Data set whose item ``(epoch, index)`` depends on that key alone."""

    batch_size: int
    seed: int

    def __len__(self) -> int:
        """Samples an epoch."""

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """One sample."""


def batches(dataset: KeyedDataset, epoch: int, *, workers: int = 0) -> Iterator[Batch]:
    """Yield the batches of one epoch, in order.

    Every number of workers gives the same bytes. Workers end with the epoch: starting two takes 0.15 s, and nothing
    outlives the epoch.

    Args:
        dataset: usually a :class:`uumamba.data.dataset.PatchDataset`.
        epoch: part of every sample's key.
        workers: processes that read ahead; 0 reads in this one and needs no shared memory.

    Raises:
        CaseError: a case could not be read; the traceback of the process that tried is in its notes.
        UumambaError: a worker was killed; the message names the case that it was reading.
        UsageError: workers have too little shared memory for their batches.
    """
    watch = WorkerWatch(workers)
    loader = DataLoader(
        _ErrorsAsItems(dataset, watch.board),
        batch_size=dataset.batch_size,
        sampler=[(epoch, index) for index in range(len(dataset))],
        num_workers=workers,
        collate_fn=_collate_or_error,
        # The loader draws a seed for its workers; from its own generator, so that the network's dropout draws the same.
        generator=generator_for(dataset.seed, "loader", epoch),
    )
    with watch.starting():
        iterator = iter(loader)
    while True:
        watch.raise_if_dead()
        try:
            batch = next(iterator, None)
        except RuntimeError:
            watch.raise_if_dead()
            raise
        if batch is None:
            return
        if isinstance(batch, UumambaError):
            raise batch
        yield batch


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack tensors, gather seeds in an int64 tensor, and names in lists."""
    return {
        "image": torch.stack([sample["image"] for sample in samples]),
        "label": torch.stack([sample["label"] for sample in samples]),
        "domain": [sample["domain"] for sample in samples],
        "case_id": [sample["case_id"] for sample in samples],
        "seed": torch.tensor([sample["seed"] for sample in samples], dtype=torch.int64),
    }


def share_batch(batch_size: int, ranks: int) -> int:
    """Return the number of a batch's samples on each rank.

    Raises:
        UsageError: the batch cannot be cut into equal shares.
    """
    expected = f"a multiple of the {ranks} processes, whose samples it counts"
    require(batch_size % ranks == 0, "training.batch_size", got=batch_size, expected=expected)
    return batch_size // ranks


class BatchShare:
    """One rank's share of every batch of a data set.

    It has every ``ranks``-th sample, from the ``rank``-th on, and is itself such a data set. The configuration's batch
    is the one that all ranks see together. A sample keeps its key in the whole, so its patch and its augmentation are
    the same for every number of ranks; and as samples centred on foreground come together at a batch's end, ranks get
    equal numbers of them, up to one.

    Args:
        dataset: the whole.
        rank: of this process, from 0.
        ranks: number of processes.

    Raises:
        UsageError: the batch cannot be cut into equal shares.

    Example:
        >>> class Keys:
        ...     batch_size, seed = 4, 0
        ...     def __len__(self):
        ...         return 8
        ...     def __getitem__(self, key):
        ...         return {"key": key}
        >>> share = BatchShare(Keys(), rank=1, ranks=2)
        >>> share.batch_size, [share[0, index]["key"][1] for index in range(len(share))]
        (2, [1, 3, 5, 7])
    """

    def __init__(self, dataset: KeyedDataset, *, rank: int, ranks: int) -> None:
        self.dataset = dataset
        self.rank = rank
        self.ranks = ranks
        self.batch_size = share_batch(dataset.batch_size, ranks)
        self.seed = dataset.seed

    def __len__(self) -> int:
        return len(self.dataset) // self.ranks

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Sample of ``(epoch, index)``, the index counted within the share."""
        epoch, index = key
        # Batches are multiples of the ranks, so counting on from batch to batch stays within this rank's samples.
        return self.dataset[epoch, index * self.ranks + self.rank]


class _ErrorsAsItems(Dataset[Sample | CaseError]):
    """Data set that returns a CaseError as an item.

    Raised in a worker, it would become a RuntimeError of text.
    """

    def __init__(self, dataset: KeyedDataset, board: Any) -> None:
        self.dataset = dataset
        self.board = board

    def __getitem__(self, key: tuple[int, int]) -> Sample | CaseError:
        try:
            return self.dataset[key]
        except CaseError as error:
            error.add_note(traceback.format_exc())
            return error


def _collate_or_error(samples: Sequence[Any]) -> Batch | UumambaError:
    """Collate samples, or return the first error.

    A worker's batch is put into shared memory here: in its queue an error would hang the run.
    """
    error = next((sample for sample in samples if isinstance(sample, CaseError)), None)
    if error is not None:
        return error
    batch = collate(samples)
    tensors = [value for value in batch.values() if isinstance(value, torch.Tensor)]
    try:
        for tensor in tensors if get_worker_info() else ():
            tensor.share_memory_()
    except (RuntimeError, OSError) as shortage:
        size_mb = sum(tensor.nbytes for tensor in tensors) / 1e6
        return UsageError(
            "/dev/shm",
            got=f"no room for a batch of {size_mb:.1f} MB ({str(shortage).strip()})",
            expected="shared memory for the workers' batches",
            fix=f"give it more (docker run --shm-size=1g), {FIX}",
        )
    return batch
