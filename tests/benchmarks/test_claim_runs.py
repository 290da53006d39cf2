"""Tests of the trainings of the claims, on few steps."""

from collections.abc import Callable
from functools import partial
from itertools import islice, repeat

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.claims import digits, low_bits, settings, text, udim, unseen_digits, useful
from benchmarks.claims.members import MEMBERS
from benchmarks.claims.plan import METHODS
from benchmarks.claims.rotated_digits import build_perceptron, make_test_set
from benchmarks.claims.run_log import Measured, Run
from benchmarks.claims.training import train
from uumamba.quantization import calibrate, quantize_, quantized_layers

pytest.importorskip("sklearn")
LOW_BITS = {"full precision": "", "QT-DoG": "7 bits, weights alone"}


@pytest.mark.parametrize(
    ("perform", "run"),
    [
        (settings.perform, Run("digits", "SAM", 0.05, 0.05, 3, 0, "test")),
        (udim.perform, udim.make_run(udim.OURS, 12, 0)),
        *(
            (low_bits.perform, Run(LOW_BITS.get(name, "2 bits"), name, None, low_bits.LEARNING_RATE, 36, 0, "test"))
            for name in (*low_bits.METHODS, *LOW_BITS)
        ),
        *(
            pytest.param(useful.perform, Run(useful.BAR, name, None, useful.LR, 2, 0, "test"), marks=pytest.mark.slow)
            for name in ("probe", "random copy", "USEFUL")
        ),
    ],
    ids=lambda value: value.method if isinstance(value, Run) else value.__module__.rpartition(".")[2],
)
def test_a_run_measures_finite_numbers_and_the_same_numbers_again(perform: Callable[[Run], Measured], run: Run) -> None:
    measured = perform(run)
    assert perform(run) == measured
    assert torch.tensor([float(value) for value in measured.values()]).isfinite().all()
    if perform is low_bits.perform:
        assert ("frozen fraction" in measured) == run.method.startswith("GAQAT")
        assert measured["seen angles"] > 0.1
        assert "unseen angle" in measured


@pytest.mark.parametrize("name", MEMBERS)
def test_every_member_trains_the_digit_classifier(name: str) -> None:
    recipe = settings.make_digits_recipe(Run("digits", name, MEMBERS[name].published, 0.05, 12, 0, "test"))
    split = digits.draw_split(0)
    before = F.cross_entropy(recipe.net(split.images), split.labels)
    train(recipe, islice(settings.draw_digit_batches(split, 0), 12), steps=12)
    with torch.no_grad():
        assert F.cross_entropy(recipe.net(split.images), split.labels) < before
    assert not recipe.net.training
    assert all(param.grad is None or param.grad.isfinite().all() for param in recipe.net.parameters())


@pytest.mark.parametrize("name", METHODS["text"])
def test_every_method_for_text_fine_tunes_the_language_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "pretrain", text.CharacterNet().state_dict)
    recipe = settings.make_text_recipe(Run("text", name, MEMBERS[name].published, 0.003, 3, 0, "validation"))
    _, batch = next(settings.draw_text_batches(0))
    before = recipe.step(batch)
    train(recipe, repeat((0, batch)), steps=3)
    with torch.no_grad():
        assert F.cross_entropy(recipe.net(batch["image"]), batch["label"]) < before


def test_a_member_s_number_is_an_option_of_its_optimizer_or_objective() -> None:
    base = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    build = {name: partial(MEMBERS[name].build, nn.Linear(2, 3), nn.CrossEntropyLoss(), base) for name in MEMBERS}
    assert build["SAM"](0.2).optimizer.param_groups[0]["rho"] == 0.2
    assert build["SAM"](engine={"max_grad_norm": 1.5}).optimizer.max_grad_norm == 1.5
    assert build["SAF"](0.7, samples=4, classes=3).objective.weight == 0.7
    assert build["OBF"]().ascent is not None


def test_least_squares_scales_have_smaller_errors_than_the_initial_scales() -> None:
    net, images = build_perceptron(0).eval(), make_test_set(0).images[:100]
    with torch.no_grad():
        exact = net(images)
        quantize_(net, **low_bits.SETTINGS["3 bits"])
        calibrate(net, [images])
        before = (net(images) - exact).square().mean()
        weight = next(quantized_layers(net)).full_weight
        error = (net[0].weight - weight).square().mean()
        low_bits.fit_scales(net, images)
        assert (net[0].weight - weight).square().mean() < error
        assert (net(images) - exact).square().mean() < before


def test_an_attack_stays_in_its_ball_and_raises_the_loss() -> None:
    split, net = unseen_digits.draw_split(0), unseen_digits.build_perceptron()
    attacked = udim.attack(net, split.test_images, split.test_labels)
    assert (attacked - split.test_images).flatten(1).norm(dim=1).max() < 0.5 + 1e-5
    before, after = (F.cross_entropy(net(images), split.test_labels) for images in (split.test_images, attacked))
    assert after > before + 0.03


def test_the_random_copy_has_as_many_examples_of_each_class() -> None:
    labels = torch.arange(4).repeat_interleave(50)
    slow = [*range(7), *range(60, 75), 150]  # 7, 15, 0 and 1 of a class
    copy = useful.draw_random_copy(labels, slow, 5)
    assert labels[list(copy)].bincount(minlength=4).tolist() == [7, 15, 0, 1]
    assert list(copy) == sorted({*copy})
    assert copy == useful.draw_random_copy(labels, slow, 5) != useful.draw_random_copy(labels, slow, 6)
    assert useful.draw_random_copy(labels, [], 5) == ()


def test_learning_epochs_and_forgetting_events_follow_from_correct_answers() -> None:
    # always right, learned late, forgotten twice, forgotten until the end, never right
    right = torch.tensor([[1, 0, 1, 1, 0], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]).bool()
    first, forgotten = useful.find_learning_epochs(right)
    assert first.tolist() == [1, 3, 1, 1, 5]
    assert forgotten.tolist() == [0, 0, 2, 1, 0]


@pytest.mark.slow
def test_digits_without_a_bar_are_found_on_a_seed_that_chose_no_setting() -> None:
    found = useful.perform(Run(useful.BAR, "probe", None, useful.LR, useful.EPOCHS, useful.FIRST_SEED, "test"))
    assert found[f"{useful.RECALL}, USEFUL"] >= 0.9
    assert found[f"{useful.PRECISION}, USEFUL"] >= 0.8
