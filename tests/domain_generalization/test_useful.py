"""USEFUL finds planted slow examples and restarts from the same weights."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.domain_generalization import (
    USEFUL,
    Probe,
    ProbeOutputs,
    SlowExamples,
    UpsampledSampler,
    find_elbow,
    find_slow,
    probe_classification,
)
from uumamba.optim import SAM, Plain

CLASSES, EACH = 4, 50
Start = Callable[[], tuple[nn.Module, Callable[[UpsampledSampler], None]]]


def planted(seed: int = 0) -> tuple[Tensor, Tensor, set[int]]:
    """Images, labels and the tenth of examples without the strong feature."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(CLASSES).repeat_interleave(EACH)
    lacking = torch.arange(len(label)) % 10 == 3
    image = torch.cat([4 * F.one_hot(label, CLASSES) * ~lacking[:, None], F.one_hot(label, CLASSES)], dim=1).float()
    image[:, CLASSES:] += 0.2 * torch.randn(len(label), CLASSES, generator=generator)
    return image, label, set(lacking.nonzero()[:, 0].tolist())


def training(image: Tensor, label: Tensor, *, dropout: float = 0.0, make: Any = Plain, lr: float = 0.05) -> Start:
    def start() -> tuple[nn.Module, Callable[[UpsampledSampler], None]]:
        net = nn.Sequential(nn.Linear(2 * CLASSES, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, CLASSES))
        optimizer = make(net.parameters(), partial(torch.optim.SGD, lr=lr, momentum=0.9))

        def train_epoch(sampler: UpsampledSampler) -> None:
            for ids in torch.tensor(list(sampler)).split(16):
                optimizer.step(lambda ids=ids: F.cross_entropy(net(image[ids]), label[ids]))

        return net, train_epoch

    return start


def useful_on(image: Tensor, label: Tensor, start: Start, **options: Any) -> USEFUL:
    return USEFUL(start, partial(probe_classification, batches=[(image, label)]), **options)


assert_equal = partial(torch.testing.assert_close, rtol=0, atol=0)


@pytest.mark.parametrize("make", [Plain, SAM])
def test_examples_without_the_easy_feature_are_found(make: Any) -> None:
    for seed in range(3):
        image, label, lacking = planted(seed)
        found = useful_on(image, label, training(image, label, make=make), seed=seed).find()
        assert len(lacking & {*found.slow}) >= 0.9 * len(lacking)
        assert len(lacking & {*found.slow}) >= 0.8 * len(found.slow)
        assert found.epoch is not None
        assert found.errors[found.epoch] < 0.5 < found.errors[0]
        assert found.settings == {"most_epochs": 20, "slowing": 0.1, "factor": 2, "outputs": "probabilities"}


def test_the_outputs_at_the_elbow_are_split() -> None:
    image, label, _ = planted()
    useful = useful_on(image, label, training(image, label), seed=5)
    found = useful.find()
    net, train_epoch = useful.restart()
    sampler = UpsampledSampler(len(label), seed=5)
    for epoch in range(found.epoch or 0):
        sampler.set_epoch(epoch)
        train_epoch(sampler)
    outputs = probe_classification(net, [(image, label)])
    assert outputs.error == found.errors[found.epoch or 0]
    again = find_slow(outputs, seed=5)
    assert (again.slow, again.groups) == (found.slow, found.groups)  # equal bit for bit


def test_every_restart_has_the_same_weights_and_the_same_draws() -> None:
    image, label, _ = planted()
    useful = useful_on(image, label, training(image, label, dropout=0.3), seed=8)
    initial = useful.restart()[0].state_dict()
    found = useful.find()
    torch.rand(5)
    assert useful.find() == found
    trained = []
    for _ in range(2):
        net, train_epoch = useful.restart()
        assert_equal(net.state_dict(), initial)
        train_epoch(useful.sampler(found))
        trained.append(net.state_dict())
    assert_equal(*trained)
    assert useful_on(image, label, training(image, label, dropout=0.3), seed=9).find().errors != found.errors


def test_a_probe_keeps_the_random_state_of_python_numpy_and_torch() -> None:
    image, label, _ = planted()

    def draws(*_: Any) -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002 the global one

    def draws_in_training(look: Callable[[nn.Module], object]) -> list[list[float]]:
        found: list[list[float]] = []

        def start() -> tuple[nn.Module, Callable[[UpsampledSampler], None]]:
            net, train_epoch = training(image, label)()
            return net, lambda sampler: (found.append(draws()), train_epoch(sampler))[1]

        USEFUL(start, lambda net: (look(net), probe_classification(net, [(image, label)]))[1], seed=2).find()
        return found

    assert draws_in_training(draws) == draws_in_training(lambda _: None)


def test_without_slow_examples_the_training_is_plain_bit_for_bit() -> None:
    image, label, _ = planted()
    start = training(image, label)
    useful = USEFUL(start, lambda net: equal_outputs(net, image, label), seed=3, most_epochs=4)
    with pytest.warns(UserWarning, match="No class has slow examples.*class 0: all outputs"):
        found = useful.find()
    assert found.slow == ()
    net, train_epoch = useful.restart()
    train_epoch(useful.sampler(found))
    plain, train_plainly = useful_on(image, label, start, seed=3).restart()
    train_plainly(UpsampledSampler(200, seed=3))
    assert_equal(net.state_dict(), plain.state_dict())


def equal_outputs(net: nn.Module, image: Tensor, label: Tensor) -> ProbeOutputs:
    """A network's accuracy with equal outputs for all examples."""
    true = probe_classification(net, [(image, label)])
    return ProbeOutputs(torch.ones_like(true.vectors), torch.ones(200), label, true.error, true.fingerprint, CLASSES)


def test_the_sampler_repeats_slow_examples_by_the_factor_and_splits_among_replicas() -> None:
    image, label, _ = planted()
    useful = useful_on(image, label, training(image, label), factor=3)
    found = SlowExamples((2, 5), 8, (), 0, "")
    assert sorted(useful.sampler(found)) == sorted([*range(8), 2, 5, 2, 5])
    assert [len(useful.sampler(found, rank=rank, replicas=2)) for rank in range(2)] == [6, 6]


def test_a_network_built_outside_start_is_refused_at_the_restart(refused: Any) -> None:
    image, label, _ = planted()
    net, train_epoch = training(image, label)()
    useful = useful_on(image, label, lambda: (net, train_epoch))
    useful.find()
    with refused("start"):
        useful.restart()


def test_data_that_change_between_passes_are_refused(refused: Any) -> None:
    image, label, _ = planted()

    def shuffled(net: nn.Module) -> ProbeOutputs:
        order = torch.randperm(len(label))
        return probe_classification(net, [(image[order], label[order])])

    with refused("batches"):
        USEFUL(training(image, label), shuffled).find()


def test_without_an_elbow_the_last_epoch_is_used_with_a_warning() -> None:
    image, label, _ = planted()
    useful = useful_on(image, label, training(image, label, lr=0.001), most_epochs=2)
    with pytest.warns(UserWarning, match="no elbow within 2 epochs"):
        found = useful.find()
    assert (found.epoch, len(found.errors)) == (2, 3)


def test_a_diverging_probe_is_refused_after_the_epoch_of_divergence(refused: Any) -> None:
    image, label, _ = planted()
    epochs: list[int] = []

    def start() -> tuple[nn.Module, Callable[[UpsampledSampler], None]]:
        net, train_epoch = training(image, label, lr=1e30)()
        return net, lambda sampler: (epochs.append(sampler.epoch), train_epoch(sampler))[1]

    with refused("outputs"):
        useful_on(image, label, start).find()
    assert epochs == [0]


@pytest.mark.parametrize(
    ("errors", "elbow"),
    [
        ([0.9, 0.5, 0.2, 0.19], 3),  # 0.01 is less than a tenth of 0.4
        ([0.9, 0.5, 0.2, 0.15], None),  # 0.05 is more
        ([0.9, 0.5, 0.2, 0.15, 0.12], 4),
        ([0.9, 0.1, 0.2], 2),  # an error that rises has slowed
        ([0.9, 0.9, 0.899, 0.899, 0.4, 0.39], 5),  # nothing was learned before
        ([0.9, 0.5], None),  # the first fall is the largest
        ([0.9], None),
        ([], None),
        ([0.0, 0.0, 0.0], None),
    ],
)
def test_the_elbow_is_the_first_epoch_of_slow_fall(errors: list[float], elbow: int | None) -> None:
    assert find_elbow(errors) == elbow


@given(st.lists(st.floats(0, 1), max_size=12), st.integers(0, 12))
def test_later_epochs_never_change_an_elbow(errors: list[float], seen: int) -> None:
    early = find_elbow(errors[:seen])
    assert early is None or early == find_elbow(errors)


@given(st.lists(st.integers(0, 1000), max_size=12))
def test_the_elbow_does_not_depend_on_the_unit_of_the_error(errors: list[int]) -> None:
    assert find_elbow([1024.0 * error for error in errors]) == find_elbow([float(error) for error in errors])


def test_a_larger_share_gives_an_earlier_elbow() -> None:
    errors = [2.0**-epoch for epoch in range(9)]  # each decrease is half of the decrease before
    # The decrease in epoch t is 2^-t, which is 2^-(t - 1) of the first decrease.
    assert [find_elbow(errors, slowing=share) for share in (0.6, 0.3, 0.1, 0.05)] == [2, 3, 5, 6]


def test_an_error_that_is_not_finite_is_refused(refused: Any) -> None:
    with refused("errors"):
        find_elbow([0.9, float("nan")])


def test_a_probe_keeps_the_outputs_of_the_elbow() -> None:
    probe = Probe()
    for step, error in enumerate((0.9, 0.4, 0.1, 0.09, 0.01)):
        vectors = torch.full((2, 2), float(step))
        ended = probe.add(ProbeOutputs(vectors, torch.zeros(2), torch.zeros(2, dtype=torch.long), error, "", 1))
        assert ended == (step >= 3)
    assert probe.outputs is not None
    assert (probe.epoch, probe.errors, float(probe.outputs.vectors[0, 0])) == (3, [0.9, 0.4, 0.1, 0.09], 3.0)
