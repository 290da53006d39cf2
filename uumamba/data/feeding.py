"""Joining samples into batches, in this process or in workers, with errors that name the case."""

import traceback
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from uumamba.errors import CaseError, UumambaError
from uumamba.seeding import generator_for
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
        UumambaError: a worker was killed.
    """
    loader = DataLoader(
        _ErrorsAsItems(dataset),
        batch_size=dataset.batch_size,
        sampler=[(epoch, index) for index in range(len(dataset))],
        num_workers=workers,
        collate_fn=_collate_or_error,
        # The loader draws a seed for its workers; from its own generator, lest it disturb the network's dropout.
        generator=generator_for(dataset.seed, "loader", epoch),
    )
    iterator = iter(loader)
    while True:
        try:
            batch = next(iterator, None)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            # torch has two messages, depending on who notices first; the cause of the other names the signal.
            reason = error.__cause__ if isinstance(error.__cause__, RuntimeError) else error
            raise UumambaError(
                f"A process that reads patches ended by itself ({str(reason).strip().rstrip('.')}); "
                "often memory ran out: use fewer workers, or `--set training.workers=0`."
            ) from error
        if batch is None:
            return
        if isinstance(batch, CaseError):
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

    def __init__(self, dataset: KeyedDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> Sample | CaseError:
        try:
            return self.dataset[key]
        except CaseError as error:
            error.add_note(traceback.format_exc())
            return error


def _collate_or_error(samples: Sequence[Sample | CaseError]) -> Batch | CaseError:
    error = next((sample for sample in samples if isinstance(sample, CaseError)), None)
    return error or collate([sample for sample in samples if not isinstance(sample, CaseError)])
