"""Endless batches in a reproducible order."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from uumamba.runtime.errors import require
from uumamba.runtime.seeds import generator_for


def cycle_batches(batches: Iterable[Any], *key: int | str) -> Iterator[Any]:
    """Yield batches without end.

    A sequence is passed in another order in each cycle, keyed by ``key`` and the cycle. Any other iterable, such as a
    ``DataLoader``, is iterated again and has its own order.

    Args:
        batches: the batches of one cycle.
        key: seed and subject, for the order and for errors.

    Raises:
        UsageError: there is no batch, or an iterator has ended, which cannot start again.

    Example:
        >>> from itertools import islice
        >>> list(islice(cycle_batches(["a", "b"], 0, "forget"), 6))
        ['a', 'b', 'a', 'b', 'b', 'a']
    """
    name = str(key[-1]) if key else "batches"
    cycle = 0
    while True:
        count = 0
        is_sequence = isinstance(batches, Sequence)
        for batch in _shuffle(batches, *key, cycle) if isinstance(batches, Sequence) else batches:
            count += 1
            yield batch
        require(
            count,
            name,
            got="an iterator that has ended" if cycle and not is_sequence else "no batch",
            expected="at least one batch in each cycle",
            fix="pass a list or a DataLoader, which can be iterated again",
        )
        cycle += 1


def _shuffle(batches: Sequence[Any], *key: int | str) -> Iterator[Any]:
    order = torch.randperm(len(batches), generator=generator_for(*key))
    return (batches[index] for index in order.tolist())


def count_samples(batch: Any) -> int:
    """Return the number of samples: the length of the batch's first tensor.

    Raises:
        UsageError: the batch holds no tensor.

    Example:
        >>> count_samples({"case_id": ["a", "b"], "image": torch.zeros(2, 3)})
        2
    """
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else [batch]
    found = next((len(each) for each in values if isinstance(each, Tensor) and each.ndim), 0)
    require(found, "batch", got=type(batch).__name__, expected="a tensor of samples in a mapping or a tuple")
    return found
