"""Leave-one-domain-out runs on rotated digits, and scores by hand."""

import json
import math
from collections import OrderedDict
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import rotate
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from uumamba.domain_generalization import (
    SWAD,
    Algorithm,
    domain_scores,
    oracle,
    split_domain,
    train_and_record,
    training_domain_validation,
)
from uumamba.optim import SAM, Plain, SharpnessAware
from uumamba.runtime.seeds import generator_for

ANGLES = (0, 15, 30, 45, 60, 75)


@cache
def rotated_digits() -> tuple[TensorDataset, ...]:
    """Six domains of different images, each rotated by its angle."""
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=generator_for(0, "rotated digits")).numpy()
    domains = []
    for index, angle in enumerate(ANGLES):
        mine = order[index :: len(ANGLES)]
        turned = rotate(bunch.images[mine] / 16, angle, axes=(1, 2), reshape=False, order=1)
        images = torch.from_numpy(turned.astype(np.float32))[:, None]
        domains.append(TensorDataset(images, torch.from_numpy(bunch.target[mine].astype(np.int64))))
    return tuple(domains)


def network() -> nn.Module:
    torch.manual_seed(1)
    featurizer = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())
    return nn.Sequential(OrderedDict(featurizer=featurizer, classifier=nn.Linear(64, 10)))


def algorithm(optimizer: Callable[..., SharpnessAware]) -> Algorithm:
    net = network()
    return Algorithm(net, optimizer(net.parameters(), partial(torch.optim.Adam, lr=1e-2)))


@pytest.mark.parametrize("optimizer", [Plain, partial(SAM, rho=0.05)], ids=["plain", "sam"])
def test_digits_of_a_held_out_angle_are_recognised_after_training_on_other_angles(
    optimizer: Callable[..., SharpnessAware],
) -> None:
    domains, test = rotated_digits(), 2  # 30 degrees: between 15 and 45
    records = train_and_record(algorithm(optimizer), domains, test_domains=[test], steps=60, record_every=30)
    chosen = training_domain_validation(records, test_domain=test)
    best = oracle(records, test_domain=test)

    # The control trains on a single domain, 0 degrees, with the same number of images per step.
    control = train_and_record(
        algorithm(optimizer), domains, test_domains=[1, 2, 3, 4, 5], steps=60, record_every=60, batch_size=160
    )
    assert chosen.test_accuracy > 0.8
    assert chosen.test_accuracy > control[-1][f"env{test}_in_acc"] + 0.1
    assert chosen.validation_accuracy > 0.8
    assert (chosen.oracle, best.oracle) == (False, True)


def test_records_have_all_fields_of_the_selection_rules_and_fit_json() -> None:
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


def test_neither_test_domains_nor_out_splits_are_trained_on() -> None:
    class Listening(Algorithm):
        """Algorithm that records the numbers of its samples."""

        def update(self, minibatches: list[tuple[Tensor, Tensor]], unlabeled: None = None) -> dict[str, float]:
            for found, (x, _) in zip(trained_on, minibatches, strict=True):
                found |= {int(value) for value in x[:, 0]}
            return super().update(minibatches)

    numbers = torch.arange(80.0).view(4, 20, 1)
    domains, trained_on = [TensorDataset(each, torch.zeros(20).long()) for each in numbers], (set(), set())
    net = nn.Linear(1, 2)
    made = Listening(net, Plain(net.parameters(), partial(torch.optim.SGD, lr=0.1)))
    train_and_record(made, domains, test_domains={1, 3}, steps=30, record_every=30)
    for found, domain in zip(trained_on, (0, 2), strict=True):
        assert found == {20 * domain + index for index in split_domain(domains[domain], domain=domain)[0].indices}


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


def test_a_held_out_domain_without_labels_has_nan_scores_and_a_selection() -> None:
    domains = [*rotated_digits()[:3]]
    images = domains[0].tensors[0]
    domains[0] = TensorDataset(images, torch.full((len(images),), -100))
    records = train_and_record(algorithm(Plain), domains, test_domains=[0], steps=2, record_every=1)
    assert [math.isnan(record["env0_in_acc"]) for record in records] == [True, True]
    chosen = training_domain_validation(records, test_domain=0)
    assert math.isnan(chosen.test_accuracy)
    assert chosen.validation_accuracy > 0


def test_a_diverging_run_with_swad_ends_with_a_warning_and_keeps_its_records() -> None:
    class Diverging(Algorithm):
        updates = 0

        def update(self, minibatches: list[tuple[Tensor, Tensor]], unlabeled: None = None) -> dict[str, float]:
            self.updates += 1
            nn.init.constant_(self.net[-1].bias, math.inf if self.updates == 6 else 0.0)
            return super().update(minibatches, unlabeled)

    net = network()
    made = Diverging(net, Plain(net.parameters(), partial(torch.optim.SGD, lr=0.1)))
    swad = SWAD(net, n_converge=1)
    with pytest.warns(UserWarning, match="validation loss at step 6 is nan"):
        records = train_and_record(made, rotated_digits()[:3], test_domains=[0], steps=20, record_every=2, swad=swad)
    assert [record["step"] for record in records] == [2, 4, 6]
    assert swad.steps == (1, 4)


LOGITS = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])


@pytest.mark.parametrize("ignored", [0, 3])
def test_scores_equal_those_by_hand_without_ignored_labels(ignored: int) -> None:
    # two of three right; cross entropy log(1 + e^-2) if right, log(1 + e^2) if wrong
    split = TensorDataset(torch.cat([LOGITS, LOGITS[:ignored]]), torch.tensor([0, 1, 1] + [-100] * ignored))
    scores = domain_scores(nn.Identity(), {4: split}, {4: split}, batch_size=2)
    loss = (2 * math.log1p(math.exp(-2)) + math.log1p(math.exp(2))) / 3
    assert scores == pytest.approx({"env4_in_acc": 2 / 3, "env4_out_acc": 2 / 3, "env4_out_loss": loss})


def test_every_pixel_of_a_label_counts_as_one() -> None:
    logits = torch.zeros(2, 3, 2, 2)
    logits[:, 1] = 1.0  # class 1 everywhere
    label = torch.tensor([[[1, 1], [1, 0]], [[1, 2], [0, 1]]])
    split = TensorDataset(logits, label)
    assert domain_scores(nn.Identity(), {0: split}, {})["env0_in_acc"] == 5 / 8


def test_scoring_runs_in_evaluation_mode_and_restores_each_modules_mode() -> None:
    net = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(2))
    net[1].eval()  # frozen by its owner
    split = TensorDataset(LOGITS, torch.tensor([0, 1, 0]))
    state = torch.get_rng_state()
    scores = [domain_scores(net, {0: split}, {}) for _ in range(2)]
    assert scores[0] == scores[1] == {"env0_in_acc": 1.0}
    assert [module.training for module in net.modules()] == [True, True, False]
    assert torch.equal(net[1].running_mean, torch.zeros(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_split_without_labels_has_nan_scores() -> None:
    nothing = TensorDataset(LOGITS, torch.full((3,), -100))
    scores = domain_scores(nn.Identity(), {1: nothing}, {1: nothing})
    assert set(scores) == {"env1_in_acc", "env1_out_acc", "env1_out_loss"}
    assert all(map(math.isnan, scores.values()))


def test_an_empty_split_is_refused(refused: Any) -> None:
    empty = TensorDataset(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
    with refused("out_splits[3]"):
        domain_scores(nn.Identity(), {}, {3: empty})
