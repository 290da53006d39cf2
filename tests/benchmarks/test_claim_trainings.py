"""Tests of the data and trainings of the claims, on few steps."""

from collections.abc import Callable
from functools import partial
from itertools import islice, repeat
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.claims import class_bar, digits, low_bits, rotated_digits, settings, text, udim, unseen_digits, useful
from benchmarks.claims.acdc import select_over_groups
from benchmarks.claims.members import MEMBERS
from benchmarks.claims.plan import METHODS
from benchmarks.claims.rotated_digits import build_perceptron, make_test_set
from benchmarks.claims.run_log import Measured, Run
from benchmarks.claims.training import train
from benchmarks.prepare import write_volume
from uumamba.data.case import Case
from uumamba.quantization import calibrate, quantize_, quantized_layers

pytest.importorskip("sklearn")


def hash_images(*parts: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for part in parts for image in part}


def test_no_digit_of_the_test_set_is_in_another_part() -> None:
    images, _ = digits.load_test_set()
    rotated = [make_test_set(angle).images for angle in rotated_digits.SOURCES]
    assert len(images) == 800
    for seed in (0, 1):
        split = digits.draw_split(seed)
        assert torch.equal(split.labels.bincount(), torch.full((10,), 20))
        assert len(split.labels) + len(split.validation_labels) == 1797 - 800
        assert not hash_images(images) & hash_images(split.images, split.validation_images)
        assert not hash_images(*rotated) & hash_images(rotated_digits.make_training_set(seed).images)


def test_the_seed_draws_only_the_angles_of_rotated_digits() -> None:
    first, second = rotated_digits.make_training_set(0), rotated_digits.make_training_set(1)
    assert torch.equal(first.labels, second.labels)
    assert not torch.equal(first.images, second.images)
    images, labels = digits.load_test_set()
    assert torch.equal(make_test_set(0).images, images.flatten(1)), "0 degrees changes nothing"
    assert torch.equal(make_test_set(rotated_digits.UNSEEN).labels, labels)
    assert rotated_digits.UNSEEN not in rotated_digits.SOURCES


def test_unseen_digits_are_split_by_the_seed_without_loss() -> None:
    one, other = unseen_digits.draw_split(0), unseen_digits.draw_split(1)
    assert (len(one.labels), len(one.test_labels)) == (1078, 719)
    assert hash_images(one.images, one.test_images) == hash_images(other.images, other.test_images)
    assert not torch.equal(one.images, other.images)


def test_corruptions_are_repeatable_change_the_images_and_increase_with_severity() -> None:
    images, _ = digits.load_test_set()
    first, second = (
        [*unseen_digits.corrupt_images(images, 0), *((name, each) for name, _, each in digits.corrupt_test_set())]
        for _ in range(2)
    )
    errors: dict[str, list[float]] = {}
    for (name, corrupted), (_, again) in zip(first, second, strict=True):
        assert torch.equal(corrupted, again)
        assert (corrupted.shape, corrupted.dtype) == (images.shape, images.dtype)
        errors.setdefault(name, []).append(float((corrupted - images).square().mean()))
    assert (len(first), len(errors)) == (9 + 15, 9 + 5)
    assert all(each[0] > 0 and each == sorted(set(each)) for each in errors.values())


def test_a_shift_translates_an_image_by_its_pixels() -> None:
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 3, 4] = 1
    shift, _ = digits.CORRUPTIONS["shift"]
    (position,) = shift(image, 2, torch.Generator().manual_seed(0))[0, 0].nonzero().tolist()
    assert position in ([1, 4], [5, 4], [3, 2], [3, 6])


@pytest.mark.parametrize(("make_set", "size"), [(class_bar.make_training_set, 997), (class_bar.make_test_set, 800)])
def test_a_bar_marks_the_class_of_nine_tenths_of_the_images(make_set: type, size: int) -> None:
    data, plain = make_set(3, bar=True), make_set(3, bar=False)
    marked = data.images[~data.bar_less, 64:]
    assert (data.images.shape, int(data.bar_less.sum())) == ((size, 74), round(0.1 * size))
    assert not data.images[data.bar_less, 64:].any()
    assert torch.equal(marked, 3.0 * nn.functional.one_hot(data.labels[~data.bar_less], 10))
    assert torch.equal(plain.images, data.images[:, :64])
    assert torch.equal(plain.labels, data.labels)
    assert not torch.equal(make_set(4, bar=True).bar_less, data.bar_less)


def test_domains_of_text_hold_out_parts_and_have_known_characters() -> None:
    for name in ("reference", "docstrings", "code"):
        training, held_out = text.load_domain(name)
        assert len(training) > 2 * len(held_out) > 50_000
        assert 0 <= int(training.min()) <= int(training.max()) < text.CLASSES
    assert text.encode("a\té").tolist() == [text.CHARACTERS.index(each) for each in "a??"]
    _, batch = next(settings.draw_text_batches(0))
    assert torch.equal(batch["image"][:, 1:], batch["label"][:, :-1]), "a label is the next character"


def test_the_language_model_is_causal() -> None:
    net = text.CharacterNet().eval()
    characters = torch.randint(text.CLASSES, (2, 10))
    changed = characters.clone()
    changed[:, 6] = (changed[:, 6] + 1) % text.CLASSES
    difference = (net(changed) - net(characters)).abs()
    assert difference.shape == (2, text.CLASSES, 10)
    assert difference[..., :6].max() < 1e-6 < 1e-3 < difference[..., 6:].max()


def test_patients_are_selected_from_each_diagnosis_in_turn() -> None:
    groups = {"p3": "NOR", "p1": "DCM", "p2": "DCM", "p4": "NOR", "p5": "DCM"}
    cases = [Case(f"{name}_frame01", name, "a", Path("absent.nii.gz"), group=group) for name, group in groups.items()]
    assert select_over_groups([*cases, *cases], 3) == ["p1", "p3", "p2"]
    assert sorted(select_over_groups(cases, None)) == ["p1", "p2", "p3", "p4", "p5"]


def test_the_ct_phantom_is_the_same_each_time_and_its_vessels_are_bright(tmp_path: Path) -> None:
    cases = [write_volume(tmp_path, (64, 60, 8)).cases[0] for _ in range(2)]
    image, label = (np.asarray(nib.load(path).dataobj) for path in (cases[0].image, cases[0].label))
    again = (tmp_path / "volume.nii.gz").read_bytes()
    write_volume(tmp_path, (64, 60, 8))
    assert (tmp_path / "volume.nii.gz").read_bytes() == again
    assert image.dtype == np.int16
    assert np.unique(label).tolist() == [0, 1, 2, 3]
    assert image[label == 1].mean() == pytest.approx(330, abs=5)
    assert (image < -500).any()


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
    exact = net(images)
    quantize_(net, **low_bits.SETTINGS["3 bits"])
    calibrate(net, [images])
    weight = next(quantized_layers(net)).full_weight
    before = F.mse_loss(net[0].weight, weight), F.mse_loss(net(images), exact)
    low_bits.fit_scales(net, images)
    assert F.mse_loss(net[0].weight, weight) < before[0]
    assert F.mse_loss(net(images), exact) < before[1]


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
