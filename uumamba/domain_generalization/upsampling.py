"""Upsampling of some examples: as a longer list, and as a sampler."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch.utils.data import Sampler

from uumamba.runtime.errors import require
from uumamba.runtime.seeds import generator_for

T = TypeVar("T")


def upsampled(items: Sequence[T], slow: Sequence[int], *, factor: int = 2) -> list[T]:
    """Return the items, followed by ``factor`` - 1 copies of those at the places ``slow``.

    With ``range(len(dataset))`` these are the indices of a ``torch.utils.data.Subset``, which any loader shuffles and
    any distributed sampler splits like a data set of its own. With case ids, a data set draws its cases from them.

    Args:
        items: one for each example.
        slow: places in ``items``, each at most once.
        factor: occurrences of a slow one; 1 changes nothing.

    Raises:
        UsageError: a place is outside or occurs twice, or ``factor`` is less than 1.

    Example:
        >>> upsampled(range(5), [1, 3])
        [0, 1, 2, 3, 4, 1, 3]
        >>> upsampled(["case_a", "case_b"], [1])
        ['case_a', 'case_b', 'case_b']
    """
    require(factor >= 1, "factor", got=factor, expected="at least 1")
    fits = len({*slow}) == len(slow) and all(0 <= place < len(items) for place in slow)
    require(fits, "slow", got=list(slow), expected=f"different places in 0 to {len(items) - 1}")
    return [*items, *(items[place] for _ in range(factor - 1) for place in slow)]


class UpsampledSampler(Sampler[int]):
    """Sampler of every index once and the slow ones twice an epoch, in an order keyed by seed and epoch.

    Call :meth:`set_epoch` before each epoch, or every epoch has the order of the first. Copies are shuffled with all
    indices, so the two showings of a slow example are apart. With ``factor`` 1 or no slow example it is a plain random
    sampler.

    Several ``replicas`` share an epoch, each taking every n-th index. Where their number does not divide, the first
    indices of the order are repeated, as by torch's ``DistributedSampler``: replicas that make different numbers of
    steps would wait for each other for ever. ``drop_last`` leaves the surplus out instead.

    Args:
        size: of the data set.
        slow: the indices to repeat, each at most once; such as ``found.slow``.
        factor: occurrences of a slow index in an epoch.
        shuffle: False gives the indices in order, then the copies.
        seed: of the order.
        rank: of this replica.
        replicas: number of processes that share an epoch.
        drop_last: leave out the surplus instead of repeating.

    Raises:
        UsageError: an index is outside or occurs twice, or a number is out of range.

    Example:
        >>> sampler = UpsampledSampler(4, [2])
        >>> sorted(sampler), len(sampler)
        ([0, 1, 2, 2, 3], 5)

    References:
        Nguyen et al., *Changing the Training Data Distribution to Reduce Simplicity Bias Improves In-distribution
        Generalization*, NeurIPS 2024, arXiv:2404.17768 (twice; more copies were worse).
        Differs from the paper: none.
    """

    def __init__(
        self,
        size: int,
        slow: Sequence[int] = (),
        *,
        factor: int = 2,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        replicas: int = 1,
        drop_last: bool = False,
    ) -> None:
        require(0 <= rank < replicas, "rank", got=rank, expected=f"0 to {replicas - 1}")
        self.indices = upsampled(range(size), slow, factor=factor)
        require(
            replicas <= len(self.indices),
            "replicas",
            got=replicas,
            expected=f"at most {len(self.indices)}, one an index",
        )
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last
        self.rank, self.replicas = rank, replicas
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the next epoch, which keys its order."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of indices of this replica in an epoch."""
        surplus = 0 if self.drop_last else self.replicas - 1
        return (len(self.indices) + surplus) // self.replicas

    def __iter__(self) -> Iterator[int]:
        """Iterate over the indices of this replica for the epoch."""
        total = len(self) * self.replicas
        order = list(range(len(self.indices)))
        if self.shuffle:
            order = torch.randperm(len(order), generator=generator_for(self.seed, "order", self.epoch)).tolist()
        order = (order + order[: self.replicas])[:total]
        return (self.indices[place] for place in order[self.rank :: self.replicas])
