"""Endless minibatches of several domains at once."""

from collections.abc import Iterator, Mapping, Sized
from itertools import count
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from uumamba.runtime.errors import UsageError
from uumamba.runtime.seeds import generator_for


def domain_batches(
    datasets: Mapping[int, Dataset[Any]],
    *,
    batch_size: int = 32,
    trial_seed: int = 0,
    first_step: int = 0,
    workers: int = 0,
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Minibatches ``[(x, y), ...]`` without end, one pair a domain, in the order of ``datasets``.

    Samples are drawn with replacement. Which ones belong to a step is decided by ``(trial_seed, domain, step)`` alone,
    so a run resumed at ``first_step`` sees what it would have seen, and neither the number of workers nor the presence
    of other domains changes a domain's batches.

    Args:
        datasets: by the domain's number, map-style, of samples ``(x, y)``; the in splits of the training domains.
        batch_size: samples a domain.
        trial_seed: one for each repetition of an experiment.
        first_step: the step that the first minibatches are for.
        workers: processes that load each domain.

    Raises:
        UsageError: there is no domain, one is empty, or ``batch_size`` is not positive.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> domain = TensorDataset(torch.zeros(5, 2), torch.arange(5))
        >>> (x, y), _ = next(domain_batches({0: domain, 2: domain}, batch_size=3))
        >>> x.shape, y.shape
        (torch.Size([3, 2]), torch.Size([3]))
    """
    if not datasets:
        raise UsageError("There is no domain to train on; hold fewer out, or add data.")
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}.")
    loaders = [
        DataLoader(
            dataset,
            batch_sampler=_Draws(
                _length(dataset, domain), batch_size, (trial_seed, "domain batch", domain), first_step
            ),
            num_workers=workers,
            generator=generator_for(trial_seed, "workers", domain),  # otherwise iterating draws from torch's global one
        )
        for domain, dataset in datasets.items()
    ]
    return _pairs(loaders)


def _pairs(loaders: list[DataLoader[Any]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    for step in zip(*loaders, strict=True):
        yield [(x, y) for x, y in step]


class _Draws:
    """Indices of each step's batch, endlessly."""

    def __init__(self, samples: int, batch_size: int, key: tuple[int | str, ...], first_step: int) -> None:
        self._samples, self._batch_size, self._key, self._first_step = samples, batch_size, key, first_step

    def __iter__(self) -> Iterator[list[int]]:
        for step in count(self._first_step):
            drawn = torch.randint(self._samples, (self._batch_size,), generator=generator_for(*self._key, step))
            yield drawn.tolist()


def _length(dataset: Dataset[Any], domain: int) -> int:
    samples = len(cast(Sized, dataset))
    if samples == 0:
        raise UsageError(f"Domain {domain} has no samples.")
    return samples
