"""Unlearning of a class of digits, and what a run refuses."""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD, AdamW

from benchmarks.claims.digits import draw_split
from uumamba.optim import SAM, Plain
from uumamba.unlearning import (
    NPO,
    GradientDifference,
    GradientPenalty,
    MeanLoss,
    UnlearningStep,
    WeightAveraging,
    collect_losses,
    renew_statistics,
    unlearn,
)

Batch = tuple[Tensor, Tensor]
plain = lambda params: Plain(params, partial(SGD, lr=0.1))  # noqa: E731


def make_batches(count: int = 3) -> list[Batch]:
    generator = torch.Generator().manual_seed(5)
    return [(torch.randn(4, 3, generator=generator), torch.arange(4) % 3) for _ in range(count)]


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


def run(net: nn.Module, **options: Any) -> tuple[list[Any], Tensor]:
    net = deepcopy(net)
    defaults = {"forget_loss": NPO(net, beta=0.5), "optimizer": plain, "steps": 4}
    records = unlearn(net, make_batches(), make_batches(), **defaults | options)
    return records, parameters_to_vector(net.parameters()).detach()


@pytest.fixture(scope="module")
def trained_on_digits() -> tuple[nn.Module, list[Batch], list[Batch], tuple[Tensor, Tensor]]:
    """A network for digits 0 to 9, batches of the 3 and of all others, and a validation set."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    split = draw_split(0)
    optimizer = AdamW(net.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(split.images), split.labels).backward()
        optimizer.step()
    is_three = split.labels == 3
    forget = [(split.images[is_three], split.labels[is_three])]
    retain = [(split.images[~is_three], split.labels[~is_three])]
    return net, forget, retain, (split.validation_images, split.validation_labels)


@torch.no_grad()
def accuracy(net: nn.Module, image: Tensor, label: Tensor) -> float:
    return (net(image).argmax(1) == label).double().mean().item()


@pytest.mark.parametrize("smoothing", [None, GradientPenalty(weight=0.05)], ids=["SAM", "SAM and penalty"])
def test_a_class_of_digits_is_forgotten_and_the_others_kept(trained_on_digits: Any, smoothing: Any) -> None:
    trained, forget, retain, (image, label) = trained_on_digits
    net, is_three = deepcopy(trained), label == 3
    before = accuracy(net, image[~is_three], label[~is_three])
    assert accuracy(net, image[is_three], label[is_three]) > 0.8
    records = unlearn(
        net,
        forget,
        retain,
        forget_loss=NPO(trained, beta=0.5),
        optimizer=lambda params: SAM(params, partial(AdamW, lr=3e-3), rho=0.01),
        steps=60,
        smoothing=smoothing,
    )
    assert not any(record.is_skipped for record in records)
    assert accuracy(net, image[is_three], label[is_three]) < 0.1  # chance
    assert collect_losses(net, forget).mean() > math.log(10)
    assert accuracy(net, image[~is_three], label[~is_three]) > before - 0.03


def test_the_same_seed_gives_the_same_weights_and_another_seed_another_order(net: nn.Module) -> None:
    (first, weights), (second, others) = run(net), run(net)
    assert torch.equal(weights, others)
    assert first == second
    assert not torch.equal(weights, run(net, seed=1)[1])


def test_a_run_is_its_steps(net: nn.Module) -> None:
    batch = make_batches(1)
    whole, single = deepcopy(net), deepcopy(net)
    records = unlearn(
        whole, batch, batch, forget_loss=GradientDifference(), optimizer=plain, steps=3, retain_weight=0.5
    )
    step = UnlearningStep(GradientDifference(), MeanLoss(), retain_weight=0.5)
    optimizer = plain(single.parameters())
    assert records == [step(single, optimizer, batch, batch) for _ in range(3)]
    assert [record.step for record in records] == [1, 2, 3]
    assert torch.equal(parameters_to_vector(whole.parameters()), parameters_to_vector(single.parameters()))


def test_accumulation_takes_several_batches_of_each_set_per_step(net: nn.Module) -> None:
    seen: list[str] = []

    def loss(name: str, net: nn.Module, batch: Batch) -> Tensor:
        seen.append(name)
        return MeanLoss()(net, batch)

    run(net, forget_loss=partial(loss, "forget"), retain_loss=partial(loss, "retain"), accumulation=2, steps=2)
    assert (seen.count("forget"), seen.count("retain")) == (4, 4)


def test_every_batch_is_used_once_per_cycle_and_loaders_are_iterated_again(net: nn.Module) -> None:
    seen: list[int] = []
    batches = [{"image": torch.randn(1, 3), "label": torch.tensor([0]), "id": index} for index in range(5)]

    def loss(net: nn.Module, batch: Any) -> Tensor:
        seen.append(batch["id"])
        return MeanLoss()(net, batch)

    options = {"forget_loss": loss, "optimizer": plain, "steps": 10, "retain_weight": 0.0}
    unlearn(net, batches, [], **options)
    assert sorted(seen[:5]) == sorted(seen[5:]) == [0, 1, 2, 3, 4]
    assert seen[:5] != seen[5:]

    class Loader:
        def __iter__(self) -> Iterator[Any]:
            return iter(batches)

    seen.clear()
    unlearn(net, Loader(), [], **options)
    assert seen == 2 * [0, 1, 2, 3, 4]


@pytest.mark.parametrize("empty", ["forget", "retain"])
@pytest.mark.parametrize("make", [list, lambda: iter([])])
def test_an_empty_set_is_refused_and_the_weights_stay(
    net: nn.Module, empty: str, make: Callable, refused: Callable
) -> None:
    sets = {"forget": make_batches(), "retain": make_batches()} | {empty: make()}
    before = parameters_to_vector(net.parameters()).clone()
    with refused(empty, "no batch"):
        unlearn(net, **sets, forget_loss=GradientDifference(), optimizer=plain, steps=2)
    assert torch.equal(parameters_to_vector(net.parameters()), before)


def test_an_iterator_that_ends_is_named_and_the_complete_steps_stay(net: nn.Module, refused: Callable) -> None:
    expected = deepcopy(net)
    options = {"forget_loss": GradientDifference(), "optimizer": plain}
    unlearn(expected, iter(make_batches(3)), make_batches(), steps=3, **options)
    with refused("forget", "an iterator that has ended"):
        unlearn(net, iter(make_batches(3)), make_batches(), steps=5, **options)
    assert torch.equal(parameters_to_vector(net.parameters()), parameters_to_vector(expected.parameters()))


def test_an_error_of_on_step_ends_the_run_after_a_complete_step(net: nn.Module) -> None:
    expected, seen = deepcopy(net), []
    options = {"forget_loss": GradientDifference(), "optimizer": plain}
    unlearn(expected, make_batches(), make_batches(), steps=2, **options)

    def stop(record: Any) -> None:
        seen.append(record.step)
        if record.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unlearn(net, make_batches(), make_batches(), steps=5, on_step=stop, **options)
    assert seen == [1, 2]
    assert torch.equal(parameters_to_vector(net.parameters()), parameters_to_vector(expected.parameters()))


def test_a_net_without_trainable_parameters_is_refused(net: nn.Module, refused: Callable) -> None:
    with refused("net", "no trainable parameter"):
        run(net.requires_grad_(False))


@pytest.mark.parametrize("make", [partial(SGD, lr=0.1), lambda params: None])
def test_an_optimizer_of_another_kind_is_refused(net: nn.Module, make: Callable, refused: Callable) -> None:
    with refused("optimizer"):
        run(net, optimizer=make)


def test_a_skipped_step_is_recorded_with_a_warning(net: nn.Module) -> None:
    calls = iter(range(9))

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        return MeanLoss()(net, batch) * (math.nan if next(calls) == 1 else -1)

    with pytest.warns(UserWarning, match="1 of 4 unlearning steps were skipped.*step 2"):
        records, _ = run(net, forget_loss=loss)
    assert [record.is_skipped for record in records] == [False, True, False, False]


def test_a_run_without_any_finite_step_is_an_error(net: nn.Module, refused: Callable) -> None:
    before = parameters_to_vector(net.parameters()).clone()
    with refused("steps"):
        unlearn(
            net,
            [(torch.full((1, 3), math.nan), torch.tensor([0]))],
            make_batches(),
            forget_loss=GradientDifference(),
            optimizer=plain,
            steps=3,
        )
    assert torch.equal(parameters_to_vector(net.parameters()), before)


@pytest.mark.parametrize(("option", "value"), [("steps", 0), ("accumulation", 0), ("retain_weight", -1), ("seed", "a")])
def test_an_option_out_of_range_is_refused(net: nn.Module, option: str, value: Any, refused: Callable) -> None:
    with refused(option, value):
        run(net, **{option: value})


def test_averaging_loads_the_mean_of_later_weights(net: nn.Module) -> None:
    after = [run(net, steps=steps)[1] for steps in (3, 5)]
    _, found = run(net, steps=6, averaging=WeightAveraging(start=3, every=2))
    torch.testing.assert_close(found, (after[0] + after[1]) / 2)


def test_averaging_of_half_precision_weights_is_in_float32() -> None:
    net, averaging = nn.Linear(1, 1, bias=False).bfloat16(), WeightAveraging(start=1, every=1)
    for step in range(1, 513):
        nn.init.constant_(net.weight, 1.0 if step <= 256 else 1.0625)  # single additions would be lost in rounding
        averaging.after_step(net, step)
    averaging.load_into(net)
    assert net.weight.item() == 1.03125


def test_an_averaging_that_never_starts_or_was_used_is_refused(net: nn.Module, refused: Callable) -> None:
    with refused("averaging", "start 100"):
        run(net, averaging=WeightAveraging())
    used = WeightAveraging(start=1, every=1)
    run(net, averaging=used)
    with refused("averaging", "weights of an earlier run"):
        run(net, averaging=used)
    with refused("averaging", "no averaged weights"):
        WeightAveraging().load_into(net)


def test_statistics_of_batch_norms_come_from_the_retain_set_alone() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3).eval())
    net(torch.randn(5, 3))
    net[2].running_mean.fill_(0.5)
    frozen = deepcopy(net[2].state_dict())
    net.train()
    net[2].eval()
    forget, retain = [(make_batches(1)[0][0] + 100, torch.arange(4) % 3)], make_batches(2)
    unlearn(net, forget, retain, forget_loss=GradientDifference(), optimizer=plain, steps=2)
    expected = torch.stack([image.mean(0) for image, _ in retain]).mean(0)
    torch.testing.assert_close(net[0].running_mean, expected)
    assert net[0].momentum == 0.1
    assert all(torch.equal(net[2].state_dict()[name], frozen[name]) for name in ("running_mean", "running_var"))


def test_statistics_come_from_the_next_batches_of_an_endless_iterator() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
    retain = [(torch.randn(4, 3) + index, torch.arange(4) % 3) for index in range(4)]
    unlearn(net, make_batches(), iter(retain), forget_loss=GradientDifference(), optimizer=plain, steps=2)
    torch.testing.assert_close(net[0].running_mean, torch.cat([image for image, _ in retain[2:]]).mean(0))


def test_an_error_while_statistics_are_computed_restores_them() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3))
    net(torch.randn(4, 3))
    before = deepcopy(net.state_dict())
    batches = (batch for batch in [make_batches(1)[0], (torch.zeros(2, 7), torch.zeros(2))])
    with pytest.raises(RuntimeError, match="running_mean"):
        renew_statistics(net, batches)
    renew_statistics(net, [])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net[0].momentum == 0.1
