from itertools import islice

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from uumamba.domain_generalization import domain_batches
from uumamba.runtime.errors import UsageError


class Numbers(Dataset[tuple[Tensor, int]]):
    """Samples that are their own numbers, from ``first`` on."""

    def __init__(self, samples: int, first: int = 0) -> None:
        self.samples, self.first = samples, first

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor([float(self.first + index)]), index % 3


def drawn(steps: int, **options: int) -> list[list[list[float]]]:
    batches = domain_batches({2: Numbers(20), 5: Numbers(30, 100)}, **{"batch_size": 4, **options})
    return [[x[:, 0].tolist() for x, _ in minibatches] for minibatches in islice(batches, steps)]


def test_each_minibatch_holds_samples_of_its_domain_alone_without_end() -> None:
    for first, second in drawn(40):  # 160 samples of domains of 20 and 30
        assert len(first) == len(second) == 4
        assert all(0 <= value < 20 for value in first)
        assert all(100 <= value < 130 for value in second)


def test_labels_stay_with_their_inputs() -> None:
    (x, y), _ = next(domain_batches({0: Numbers(20), 1: Numbers(20)}, batch_size=8))
    assert y.dtype == torch.int64
    assert y.tolist() == [int(value) % 3 for value in x[:, 0]]


def test_a_run_taken_up_again_sees_what_it_would_have_seen() -> None:
    assert drawn(6)[4:] == drawn(2, first_step=4)


def test_neither_workers_nor_other_domains_change_what_a_domain_gives() -> None:
    alone = [x[:, 0].tolist() for [(x, _)] in islice(domain_batches({5: Numbers(30, 100)}, batch_size=4), 3)]
    assert alone == [second for _, second in drawn(3)]
    assert drawn(3, workers=1) == drawn(3)


def test_trials_domains_and_steps_draw_differently_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    first, other = drawn(20), drawn(20, trial_seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    batches = [tuple(x) for run in (first, other) for step in run for x in step]
    assert len(set(batches)) == len(batches)


def test_every_sample_is_drawn_about_equally_often() -> None:
    counts = torch.zeros(20)
    for [(x, _)] in islice(domain_batches({0: Numbers(20)}, batch_size=50), 40):
        counts += torch.bincount(x[:, 0].long(), minlength=20)
    # 2000 draws over 20 samples: 100 each, standard deviation below 10
    assert (counts - 100).abs().max() < 40


def test_nothing_to_draw_from_is_refused() -> None:
    with pytest.raises(UsageError, match="no domain to train on"):
        domain_batches({})
    with pytest.raises(UsageError, match="Domain 3 has no samples"):
        domain_batches({3: TensorDataset(torch.zeros(0, 1), torch.zeros(0))})
    with pytest.raises(UsageError, match="batch_size must be at least 1, got 0"):
        domain_batches({0: Numbers(5)}, batch_size=0)
