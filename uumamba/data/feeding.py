"""Joining samples into batches, in this process or in workers, with errors that name the case."""

import traceback
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from uumamba.data.worker_watch import CURE, ReadingBoard, WorkerWatch
from uumamba.runtime.errors import CaseError, UsageError, UumambaError
from uumamba.runtime.seeds import generator_for
from uumamba.types import Batch

Sample = dict[str, Any]


class KeyedDataset(Protocol):
    """A data set whose item ``(epoch, index)`` depends on that key alone."""

    batch_size: int
    seed: int

    def __len__(self) -> int:
        """Samples an epoch."""

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """One sample."""


def batches(dataset: KeyedDataset, epoch: int, *, workers: int = 0) -> Iterator[Batch]:
    """The batches of one epoch, in order; the same bytes for every number of workers.

    Workers live for the epoch: starting and ending two took 0.15 s, which keeping them would save at the price of state
    that outlives the epoch.

    Args:
        dataset: usually a :class:`uumamba.data.dataset.PatchDataset`.
        epoch: part of every sample's key.
        workers: processes that read ahead; 0 reads in this one and needs no shared memory.

    Raises:
        CaseError: a case could not be read; the traceback of the process that tried is in its notes.
        UumambaError: a worker was killed; the message names the case that it was reading.
        UsageError: workers have too little shared memory to hand their batches over.
    """
    watch = WorkerWatch(workers)
    loader = DataLoader(
        _ErrorsAsItems(dataset, watch.board),
        batch_size=dataset.batch_size,
        sampler=[(epoch, index) for index in range(len(dataset))],
        num_workers=workers,
        collate_fn=_collate_or_error,
        # The loader draws a seed for its workers; from its own generator, lest it disturb the network's dropout.
        generator=generator_for(dataset.seed, "loader", epoch),
    )
    with watch.starting():
        iterator = iter(loader)
    while True:
        watch.refuse_dead()
        try:
            batch = next(iterator, None)
        except RuntimeError:
            watch.refuse_dead()
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


class _ErrorsAsItems(Dataset[Sample | CaseError]):
    """Hand a CaseError on as an item: raised in a worker, torch would turn it into a RuntimeError of text."""

    def __init__(self, dataset: KeyedDataset, board: ReadingBoard | None) -> None:
        self.dataset = dataset
        self.board = board

    def __getitem__(self, key: tuple[int, int]) -> Sample | CaseError:
        try:
            return self.dataset[key]
        except CaseError as error:
            error.add_note(traceback.format_exc())
            return error


def _collate_or_error(samples: Sequence[Sample | CaseError]) -> Batch | UumambaError:
    error = next((sample for sample in samples if isinstance(sample, CaseError)), None)
    if error is not None:
        return error
    batch = collate([sample for sample in samples if not isinstance(sample, CaseError)])
    return batch if get_worker_info() is None else _shared(batch)


def _shared(batch: Batch) -> Batch | UsageError:
    """A worker's batch in shared memory; left to the queue's own thread, an error there would hang the run for good."""
    try:
        for value in batch.values():
            if isinstance(value, torch.Tensor):
                value.share_memory_()
    except (RuntimeError, OSError) as error:
        size_mb = sum(value.nbytes for value in batch.values() if isinstance(value, torch.Tensor)) / 1e6
        return UsageError(
            f"A process that reads patches found no room in shared memory, /dev/shm, for a batch of {size_mb:.1f} MB "
            f"({str(error).strip()}); give it more (docker run --shm-size=1g), {CURE}."
        )
    return batch
