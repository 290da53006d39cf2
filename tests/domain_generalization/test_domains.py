"""Splits and minibatches are keyed by trial, domain and step only."""

from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from uumamba.domain_generalization import domain_batches, held_out_domains, split_domain


def numbered(samples: int, first: int = 0) -> TensorDataset:
    """Samples numbered from ``first`` on; the label is the number modulo 3."""
    numbers = torch.arange(first, first + samples)
    return TensorDataset(numbers[:, None], numbers % 3)


def drawn(steps: int, **options: int) -> list[list[list[int]]]:
    batches = domain_batches({2: numbered(20), 5: numbered(30, 100)}, **{"batch_size": 4, **options})
    return [[x[:, 0].tolist() for x, _ in minibatches] for minibatches in islice(batches, steps)]


@pytest.mark.parametrize(("samples", "held"), [(10, 2), (14, 2), (15, 3), (1000, 200)])
def test_every_sample_is_in_one_split_and_a_fifth_is_held_out(samples: int, held: int) -> None:
    inside, outside = split_domain(numbered(samples), domain=3)
    assert sorted([*inside.indices, *outside.indices]) == list(range(samples))
    assert len(outside) == held


def test_splits_depend_on_domain_and_trial_only_and_keep_the_global_generator() -> None:
    state = torch.get_rng_state()
    keys = [(domain, trial) for domain in range(3) for trial in range(3)]
    splits, again = (
        {(d, t): tuple(split_domain(numbered(40), domain=d, trial_seed=t)[1].indices) for d, t in order}
        for order in (keys, keys[::-1])
    )
    assert splits == again
    assert len(set(splits.values())) == 9
    assert torch.equal(torch.get_rng_state(), state)


def test_endless_minibatches_hold_samples_of_their_domain_with_their_labels() -> None:
    batches = domain_batches({2: numbered(20), 5: numbered(30, 100)}, batch_size=4)
    for minibatches in islice(batches, 40):  # 160 samples of domains of 20 and 30
        for (x, y), first, last in zip(minibatches, (0, 100), (20, 130), strict=True):
            assert x.shape == (4, 1)
            assert ((first <= x) & (x < last)).all()
            assert torch.equal(y, x[:, 0] % 3)


def test_a_resumed_run_gets_the_batches_of_an_uninterrupted_run() -> None:
    assert drawn(6)[4:] == drawn(2, first_step=4)


def test_neither_workers_nor_other_domains_change_a_domain_s_batches() -> None:
    alone = [x[:, 0].tolist() for [(x, _)] in islice(domain_batches({5: numbered(30, 100)}, batch_size=4), 3)]
    assert alone == [second for _, second in drawn(3)]
    assert drawn(3, workers=1) == drawn(3)


def test_trials_domains_and_steps_draw_differently_and_keep_the_global_generator() -> None:
    state = torch.get_rng_state()
    first, other = drawn(20), drawn(20, trial_seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    batches = [tuple(x) for run in (first, other) for step in run for x in step]
    assert len(set(batches)) == len(batches)


def test_every_sample_is_drawn_about_equally_often() -> None:
    [(x, _)] = next(domain_batches({0: numbered(20)}, batch_size=2000))
    # 2000 draws over 20 samples: 100 each, standard deviation below 10
    assert (torch.bincount(x[:, 0], minlength=20) - 100).abs().max() < 40


def test_each_domain_is_held_out_once_and_for_cross_validation_also_every_pair() -> None:
    assert held_out_domains(5) == [(domain,) for domain in range(5)]
    runs = held_out_domains(5, cross_validation=True)
    assert len(runs) == len(set(runs)) == 5 + 5 * 4 // 2
    for test in range(5):
        assert sum(test in run for run in runs) == 5  # the runs that one test domain needs


def test_missing_domains_and_samples_are_refused(refused: Any) -> None:
    with refused("datasets", got="no domain"):
        domain_batches({})
    with refused("datasets", got="no sample in domain 3"):
        domain_batches({3: numbered(0)})
    with refused("holdout", got="0.2 of 4 samples in domain 7"):
        split_domain(numbered(4), domain=7)
