"""Every index occurs once per epoch, every slow index twice."""

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

from uumamba.domain_generalization import UpsampledSampler, upsampled
from uumamba.runtime.seeds import generator_for

SLOW = (2, 5, 6)
TWICE = {index: 2 if index in SLOW else 1 for index in range(10)}


def test_slow_indices_occur_twice_and_all_others_once_in_every_epoch() -> None:
    sampler = UpsampledSampler(10, SLOW)
    orders = []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert Counter(order) == TWICE
        assert len(order) == len(sampler) == 13
        orders.append(tuple(order))
    assert len({*orders}) == 5
    assert all(order != tuple(sorted(order)) for order in orders)


@given(st.integers(1, 40), st.sets(st.integers(0, 39)), st.integers(1, 4), st.integers(1, 5))
def test_replicas_share_the_epoch_and_repeat_indices_only_for_equal_lengths(
    size: int, slow: set[int], factor: int, replicas: int
) -> None:
    slow = {place for place in slow if place < size}
    whole = Counter(upsampled(range(size), sorted(slow), factor=factor))
    if replicas > whole.total():
        return
    options = {"factor": factor, "replicas": replicas, "seed": 3}
    parts = [UpsampledSampler(size, sorted(slow), rank=rank, **options) for rank in range(replicas)]
    orders = [list(part) for part in parts]
    assert {len(order) for order in orders} == {len(part) for part in parts} == {len(parts[0])}
    shown = sum(map(Counter, orders), Counter())
    assert (shown - whole).total() == -whole.total() % replicas
    assert not whole - shown


def test_factor_one_or_no_slow_index_is_the_plain_random_order() -> None:
    plain = torch.randperm(10, generator=generator_for(4, "order", 2)).tolist()
    for sampler in (UpsampledSampler(10, seed=4), UpsampledSampler(10, SLOW, factor=1, seed=4)):
        sampler.set_epoch(2)
        assert list(sampler) == plain


def test_an_order_depends_on_seed_and_epoch_only() -> None:
    first, second = UpsampledSampler(10, SLOW, seed=1), UpsampledSampler(10, SLOW, seed=1)
    list(first)
    torch.rand(3)
    for sampler in (first, second):
        sampler.set_epoch(6)
    assert list(first) == list(second) == list(second)
    assert list(UpsampledSampler(10, SLOW, seed=2)) != list(UpsampledSampler(10, SLOW, seed=1))


def test_the_upsampled_list_works_with_torchs_subset_and_samplers() -> None:
    data = Subset(TensorDataset(torch.arange(10)), upsampled(range(10), SLOW))
    shuffled = DataLoader(data, batch_size=4, shuffle=True)
    assert Counter(int(each) for (batch,) in shuffled for each in batch) == TWICE
    theirs = [DistributedSampler(data, num_replicas=2, rank=rank) for rank in range(2)]
    assert [len(UpsampledSampler(10, SLOW, replicas=2, rank=rank)) for rank in range(2)] == [*map(len, theirs)]
