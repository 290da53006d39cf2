"""Leave one domain out, from the data to what is reported: digits turned by 0 to 75 degrees."""

import json
import math
from collections import OrderedDict
from collections.abc import Callable
from functools import cache, partial
from itertools import islice

import numpy as np
import pytest
import torch
from scipy.ndimage import rotate
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from uumamba.domain_generalization import (
    SWAD,
    Algorithm,
    MixStyle,
    domain_batches,
    domain_scores,
    held_out_domains,
    leave_one_domain_out_validation,
    oracle,
    split_domain,
    train_and_record,
    training_domain_validation,
)
from uumamba.optim import SAM, Plain, SharpnessAware
from uumamba.runtime.errors import UsageError
from uumamba.runtime.seeds import generator_for

ANGLES = (0, 15, 30, 45, 60, 75)


@cache
def rotated_digits() -> tuple[TensorDataset, ...]:
    """Six domains, each with its own sixth of the images, turned by its angle."""
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=generator_for(0, "rotated digits")).numpy()
    domains = []
    for index, angle in enumerate(ANGLES):
        mine = order[index :: len(ANGLES)]
        turned = rotate(bunch.images[mine] / 16, angle, axes=(1, 2), reshape=False, order=1)
        images = torch.from_numpy(turned.astype(np.float32))[:, None]
        domains.append(TensorDataset(images, torch.from_numpy(bunch.target[mine].astype(np.int64))))
    return tuple(domains)


def network(*first: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    featurizer = nn.Sequential(*first, nn.Flatten(), nn.Linear(64, 64), nn.ReLU())
    return nn.Sequential(OrderedDict(featurizer=featurizer, classifier=nn.Linear(64, 10)))


def algorithm(optimizer: Callable[..., SharpnessAware], *first: nn.Module) -> Algorithm:
    net = network(*first)
    return Algorithm(net, optimizer(net.parameters(), partial(torch.optim.Adam, lr=1e-2)))


@pytest.mark.parametrize("optimizer", [Plain, partial(SAM, rho=0.05)], ids=["plain", "sam"])
def test_a_turn_never_trained_on_is_read_better_with_turns_around_it(
    optimizer: Callable[..., SharpnessAware],
) -> None:
    domains, test = rotated_digits(), 2  # 30 degrees: between 15 and 45
    records = train_and_record(algorithm(optimizer), domains, test_domains=[test], steps=60, record_every=30)
    chosen = training_domain_validation(records, test_domain=test)
    best = oracle(records, test_domain=test)

    # The control sees one domain alone, 0 degrees, and as many images a step.
    alone = train_and_record(
        algorithm(optimizer), domains, test_domains=[1, 2, 3, 4, 5], steps=60, record_every=60, batch_size=160
    )
    assert chosen.test_accuracy > 0.8
    assert chosen.test_accuracy > alone[-1][f"env{test}_in_acc"] + 0.1
    assert chosen.validation_accuracy > 0.8
    assert (chosen.oracle, best.oracle) == (False, True)


def test_records_hold_what_the_rules_need_and_go_through_json() -> None:
    made = algorithm(Plain)
    records = train_and_record(
        made, rotated_digits()[:3], test_domains=[2], steps=5, record_every=2, setting="plain", trial_seed=3
    )
    assert [record["step"] for record in records] == [2, 4, 5]
    names = {f"env{i}_{kind}" for i in range(3) for kind in ("in_acc", "out_acc", "out_loss")}
    assert names | {"step", "test_envs", "trial_seed", "setting", "loss"} == set(records[0])
    assert (records[0]["test_envs"], records[0]["trial_seed"], records[0]["setting"]) == ([2], 3, "plain")
    again = json.loads(json.dumps(records))
    assert training_domain_validation(again, test_domain=2) == training_domain_validation(records, test_domain=2)
    splits = [split_domain(domain, domain=i, trial_seed=3) for i, domain in enumerate(rotated_digits()[:3])]
    scores = domain_scores(made.net, *(dict(enumerate(side)) for side in zip(*splits, strict=True)))
    assert scores.items() <= records[-1].items()


def test_a_whole_experiment_is_chosen_by_cross_validation_over_domains() -> None:
    domains = rotated_digits()[:3]
    records = []
    for held in held_out_domains(3, cross_validation=True):
        records += train_and_record(algorithm(Plain), domains, test_domains=held, steps=20, record_every=10)
    for test in range(3):
        found = leave_one_domain_out_validation(records, test_domain=test)
        assert found.step in (10, 20)
        assert found.test_accuracy > 0.3  # 0.1 is chance


class Watched(Dataset[tuple[Tensor, Tensor]]):
    """A domain that writes down which samples are asked for."""

    def __init__(self, samples: int) -> None:
        self.asked: list[int] = []
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.asked.append(index)
        return torch.ones(2), torch.tensor(0)


def test_neither_test_domains_nor_out_splits_are_trained_on() -> None:
    class Listening(Algorithm):
        """Notes what has been asked for when the network is trained."""

        def update(self, minibatches: list[tuple[Tensor, Tensor]], unlabeled: None = None) -> dict[str, float]:
            for domain, watched in enumerate(domains):
                trained_on[domain] |= set(watched.asked)
                watched.asked.clear()
            assert len(minibatches) == 2
            return super().update(minibatches)

    domains, trained_on = [Watched(20) for _ in range(4)], [set() for _ in range(4)]
    net = nn.Linear(2, 2)
    made = Listening(net, Plain(net.parameters(), partial(torch.optim.SGD, lr=0.1)))
    train_and_record(made, domains, test_domains={1, 3}, steps=30, record_every=30)
    for domain in (0, 2):
        inside, outside = split_domain(domains[domain], domain=domain)
        assert trained_on[domain] == set(inside.indices)
        assert not trained_on[domain] & set(outside.indices)
    assert trained_on[1] == trained_on[3] == set()


def test_the_same_trial_is_the_same_run_and_another_is_not() -> None:
    runs = [
        train_and_record(algorithm(SAM), rotated_digits()[:3], test_domains=[0], steps=3, record_every=3, trial_seed=s)
        for s in (0, 0, 1)
    ]
    assert runs[0] == runs[1]
    assert runs[0][0]["loss"] != runs[2][0]["loss"]


def test_swad_ends_a_run_with_its_valley() -> None:
    generator = torch.Generator().manual_seed(0)  # labels are noise, so learning them by heart ends it soon
    domains = [
        TensorDataset(torch.randn(50, 4, generator=generator), torch.randint(2, (50,), generator=generator))
        for _ in range(3)
    ]
    net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    made = Algorithm(net, Plain(net.parameters(), partial(torch.optim.Adam, lr=0.03)))
    swad = SWAD(net, n_converge=2, n_tolerance=3, tolerance_ratio=0.1)
    records = train_and_record(made, domains, test_domains=[1], steps=500, record_every=5, swad=swad)
    losses = [(record["env0_out_loss"] + record["env2_out_loss"]) / 2 for record in records]
    assert swad.finished
    assert records[-1]["step"] < 500
    first, last = swad.steps
    start, end = (first - 1) // 5, last // 5 - 1
    assert losses[start] <= losses[start + 1]
    assert swad.threshold == pytest.approx(1.1 * (losses[start] + losses[start + 1]) / 2)
    assert losses[end] <= swad.threshold < min(losses[end + 1 :])
    assert len(losses) - 1 - end == 3


def test_a_held_out_domain_without_labels_is_trained_beside_and_chosen_for() -> None:
    domains = [*rotated_digits()[:3]]
    images = domains[0].tensors[0]
    domains[0] = TensorDataset(images, torch.full((len(images),), -100))
    records = train_and_record(algorithm(Plain), domains, test_domains=[0], steps=2, record_every=1)
    assert [math.isnan(record["env0_in_acc"]) for record in records] == [True, True]
    chosen = training_domain_validation(records, test_domain=0)
    assert math.isnan(chosen.test_accuracy)
    assert chosen.validation_accuracy > 0


def test_a_run_that_diverges_under_swad_ends_with_a_warning_and_its_records() -> None:
    class Diverging(Algorithm):
        def update(self, minibatches: list[tuple[Tensor, Tensor]], unlabeled: None = None) -> dict[str, float]:
            numbers = super().update(minibatches, unlabeled)
            if self.updates == 5:
                nn.init.constant_(self.net[-1].bias, math.inf)
            self.updates += 1
            return numbers

    net = network()
    made = Diverging(net, Plain(net.parameters(), partial(torch.optim.SGD, lr=0.1)))
    made.updates = 1
    swad = SWAD(net, n_converge=1)
    with pytest.warns(UserWarning, match="validation loss at step 6 is nan: training has diverged, .* the run ends"):
        records = train_and_record(made, rotated_digits()[:3], test_domains=[0], steps=20, record_every=2, swad=swad)
    assert [record["step"] for record in records] == [2, 4, 6]
    assert swad.steps == (1, 4)


def test_swads_network_reads_the_held_out_turn_with_statistics_of_its_own() -> None:
    domains = rotated_digits()[:3]
    made = algorithm(Plain, nn.BatchNorm2d(1), MixStyle(generator=generator_for(0, "styles")))
    swad = SWAD(made.net, n_converge=2)
    train_and_record(made, domains, test_domains=[1], steps=60, record_every=5, swad=swad)
    assert swad.steps is not None
    splits = {domain: split_domain(domains[domain], domain=domain) for domain in range(3)}
    batches = domain_batches({domain: splits[domain][0] for domain in (0, 2)})
    averaged = swad.averaged(torch.cat([x for x, _ in minibatches]) for minibatches in islice(batches, 20))
    assert domain_scores(averaged, {1: splits[1][0]}, {})["env1_in_acc"] > 0.8


@pytest.mark.parametrize("held", [[], [0, 1, 2], [3], [-1]])
def test_wrong_test_domains_are_refused(held: list[int]) -> None:
    with pytest.raises(UsageError, match="some of the 3 domains 0 to 2 and leave at least one to train on, got"):
        train_and_record(algorithm(Plain), rotated_digits()[:3], test_domains=held, steps=1)


def test_a_number_in_place_of_test_domains_is_refused_with_the_list_to_write() -> None:
    with pytest.raises(UsageError, match=r"must be a list of domains' numbers, got 2; \[0\] holds out domain 0"):
        train_and_record(algorithm(Plain), rotated_digits()[:3], test_domains=2, steps=1)


def test_counts_that_are_not_positive_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 1, got 0 and 300"):
        train_and_record(algorithm(Plain), rotated_digits()[:3], test_domains=[0], steps=0)
