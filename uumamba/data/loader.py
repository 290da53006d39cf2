"""Batches of a keyed data set, optionally read by workers."""

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
    """Data set whose item ``(epoch, index)`` depends only on that key."""

    batch_size: int
    seed: int

    def __len__(self) -> int: ...

    def __getitem__(self, key: tuple[int, int]) -> Sample: ...


def batches(dataset: KeyedDataset, epoch: int, *, workers: int = 0) -> Iterator[Batch]:
    """Yield the batches of one epoch, in order.

    Every number of workers gives the same bytes. The workers end with the epoch; starting two takes 0.15 s.

    Args:
        dataset: usually a :class:`uumamba.data.dataset.PatchDataset`.
        epoch: part of every sample's key.
        workers: number of prefetching processes; 0 reads in this process and needs no shared memory.

    Raises:
        CaseError: a case could not be read; the notes hold the traceback of the worker.
        UumambaError: a worker was killed; the message names the case that was being read.
        UsageError: the shared memory is too small for the workers' batches.
    """
    watch = WorkerWatch(workers)
    loader = DataLoader(
        _ErrorsAsItems(dataset, watch.board),
        batch_size=dataset.batch_size,
        sampler=[(epoch, index) for index in range(len(dataset))],
        num_workers=workers,
        collate_fn=_collate_or_error,
        # Without its own generator the loader would draw a seed from the global one, which dropout uses.
        generator=generator_for(dataset.seed, "loader", epoch),
    )
    with watch.starting():
        iterator = iter(loader)
    while True:
        watch.raise_if_dead()
        try:
            batch = next(iterator, None)
        except (RuntimeError, OSError, EOFError):  # the last two by the connection of a worker that died
            watch.raise_if_dead()
            raise
        if batch is None:
            return
        if isinstance(batch, UumambaError):
            raise batch
        yield batch


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack tensors and seeds, and list the names."""
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
    require(
        batch_size % ranks == 0, "training.batch_size", got=batch_size, expected=f"a multiple of the {ranks} processes"
    )
    return batch_size // ranks


class BatchShare:
    """One rank's share of every batch of a data set.

    The share is a keyed data set of every ``ranks``-th sample, starting with sample ``rank``. The configured batch size
    counts the samples of all ranks. A sample keeps the key of the original data set, so its patch and its augmentation
    are the same for every number of ranks. Samples centred on foreground are last in a batch, so the numbers of them
    per rank differ by at most one.

    Args:
        dataset: data set of all ranks.
        rank: rank of this process, from 0.
        ranks: number of processes.

    Raises:
        UsageError: the batch size is not a multiple of ``ranks``.

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
        epoch, index = key  # of the share
        # The batch size is a multiple of the ranks, so the formula holds across batches.
        return self.dataset[epoch, index * self.ranks + self.rank]


class _ErrorsAsItems(Dataset[Sample | CaseError]):
    """Data set that returns a CaseError as an item.

    An error raised in a worker would reach the main process as a RuntimeError without fields.
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

    A worker's batch is moved to shared memory here, because an error in the worker's queue would hang the run.
    """
    if (error := next((sample for sample in samples if isinstance(sample, CaseError)), None)) is not None:
        return error
    batch = collate(samples)
    tensors = [value for value in batch.values() if isinstance(value, torch.Tensor)]
    try:
        for tensor in tensors if get_worker_info() else ():
            tensor.share_memory_()
    except (RuntimeError, OSError) as shortage:
        return UsageError(
            "/dev/shm",
            got=f"too little space for {sum(tensor.nbytes for tensor in tensors) / 1e6:.1f} MB ({shortage})",
            expected="shared memory for the batches of all workers",
            fix=f"enlarge /dev/shm (docker run --shm-size=1g), {FIX}",
        )
    return batch
