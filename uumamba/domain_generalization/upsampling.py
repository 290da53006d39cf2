"""Showing some examples more often than others: as a longer list, and as a sampler."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch.utils.data import Sampler

from uumamba.runtime.seeds import generator_for

T = TypeVar("T")


def upsampled(items: Sequence[T], slow: Sequence[int], *, factor: int = 2) -> list[T]:
    """The items, followed by ``factor`` - 1 copies of those at the places ``slow``.

    With ``range(len(dataset))`` these are the indices of a ``torch.utils.data.Subset``, which any loader shuffles and
    any distributed sampler splits like a data set of its own. With case ids it is what a data set draws cases from.

    Args:
        items: one for each example.
        slow: places in ``items``, each at most once.
        factor: how often a slow one occurs; 1 changes nothing.

    Raises:
        ValueError: a place is outside, or occurs twice, or ``factor`` is less than 1.

    Example:
        >>> upsampled(range(5), [1, 3])
        [0, 1, 2, 3, 4, 1, 3]
        >>> upsampled(["case_a", "case_b"], [1])
        ['case_a', 'case_b', 'case_b']
    """
    _check(len(items), slow, factor)
    return [*items, *(items[place] for _ in range(factor - 1) for place in slow)]


class UpsampledSampler(Sampler[int]):
    """Yields every index once and the slow ones twice an epoch, in an order decided by seed and epoch alone.

    Call :meth:`set_epoch` before each epoch, or every epoch has the order of the first. Copies are drawn from the whole
    order, so the two showings of a slow example lie in different places. With ``factor`` 1 or no slow example it is a
    plain random sampler, in the order of one.

    Several ``replicas`` share an epoch, the indices dealt out in turn. Where they do not come out even, the first ones
    of the order are dealt again, as by torch's ``DistributedSampler``: replicas that make different numbers of steps
    would wait for each other for ever. ``drop_last`` leaves the surplus out instead.

    Args:
        size: of the data set.
        slow: the indices to repeat, each at most once; such as ``found.slow``.
        factor: how often a slow index comes in an epoch.
        shuffle: False gives the indices in order, then the copies.
        seed: of the order.
        rank: which replica this is.
        replicas: how many processes share an epoch.
        drop_last: leave out what does not come out even, in place of repeating.

    Raises:
        ValueError: an index is outside, or occurs twice, or a number makes no sense.

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
        if not 0 <= rank < replicas:
            raise ValueError(f"rank must lie in 0 to {replicas - 1} with {replicas} replicas, got {rank}")
        self.indices = upsampled(range(size), slow, factor=factor)
        if replicas > len(self.indices):
            raise ValueError(f"{len(self.indices)} indices cannot be shared by {replicas} replicas")
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last
        self.rank, self.replicas = rank, replicas
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Indices of this replica in an epoch."""
        surplus = 0 if self.drop_last else self.replicas - 1
        return (len(self.indices) + surplus) // self.replicas

    def __iter__(self) -> Iterator[int]:
        """The indices of this replica for the epoch."""
        total = len(self) * self.replicas
        order = list(range(len(self.indices)))
        if self.shuffle:
            order = torch.randperm(len(order), generator=generator_for(self.seed, "order", self.epoch)).tolist()
        order = (order + order[: self.replicas])[:total]
        return (self.indices[place] for place in order[self.rank :: self.replicas])


def _check(size: int, slow: Sequence[int], factor: int) -> None:
    if factor < 1:
        raise ValueError(f"factor must be at least 1, got {factor}")
    if len({*slow}) != len(slow):
        raise ValueError(f"each slow place may stand once, got {len(slow)} of which {len({*slow})} are different")
    outside = [place for place in slow if not 0 <= place < size]
    if outside:
        raise ValueError(f"slow places must lie in 0 to {size - 1}, got {outside[0]}: they are of another data set")
