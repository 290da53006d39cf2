"""Tests of the data of the claims: separate parts, repeatable draws."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.claims import class_bar, digits, rotated_digits, text, unseen_digits
from benchmarks.claims.acdc import select_over_groups
from benchmarks.claims.settings import draw_text_batches
from benchmarks.prepare import write_volume
from uumamba.data.case import Case

pytest.importorskip("sklearn")


def hash_images(*parts: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for part in parts for image in part}


def test_no_digit_of_the_test_set_is_in_another_part() -> None:
    images, _ = digits.load_test_set()
    rotated = [rotated_digits.make_test_set(angle).images for angle in rotated_digits.SOURCES]
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
    assert len(first.labels) == 1797 - 800
    assert not torch.equal(first.images, second.images)
    images, labels = digits.load_test_set()
    assert torch.equal(rotated_digits.make_test_set(0).images, images.flatten(1)), "0 degrees changes nothing"
    assert torch.equal(rotated_digits.make_test_set(rotated_digits.UNSEEN).labels, labels)
    assert rotated_digits.UNSEEN not in rotated_digits.SOURCES


def test_unseen_digits_are_split_by_the_seed_without_loss() -> None:
    one, other = unseen_digits.draw_split(0), unseen_digits.draw_split(1)
    assert (len(one.labels), len(one.test_labels)) == (1078, 719)
    assert hash_images(one.images, one.test_images) == hash_images(other.images, other.test_images)
    assert not torch.equal(one.images, other.images)


def test_corruptions_are_repeatable_change_every_image_and_increase_with_severity() -> None:
    images, _ = digits.load_test_set()
    errors: dict[str, list[float]] = {}
    for (name, _, corrupted), (_, _, again) in zip(digits.corrupt_test_set(), digits.corrupt_test_set(), strict=True):
        assert torch.equal(corrupted, again)
        errors.setdefault(name, []).append(float((corrupted - images).square().mean()))
    assert len(errors) == 5
    assert all(0 < each[0] < each[1] < each[2] for each in errors.values())
    first, second = (list(unseen_digits.corrupt_images(images, 0)) for _ in range(2))
    assert len(first) == 9
    for (_, corrupted), (_, again) in zip(first, second, strict=True):
        assert torch.equal(corrupted, again)
        assert (corrupted.shape, corrupted.dtype) == (images.shape, images.dtype)
        assert (corrupted != images).flatten(1).any(1).all()


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
    _, batch = next(draw_text_batches(0))
    assert torch.equal(batch["image"][:, 1:], batch["label"][:, :-1]), "a label is the next character"


def test_the_language_model_is_causal() -> None:
    net = text.CharacterNet().eval()
    characters = torch.randint(text.CLASSES, (2, 10))
    changed = characters.clone()
    changed[:, 6] = (changed[:, 6] + 1) % text.CLASSES
    before, after = net(characters), net(changed)
    assert before.shape == (2, text.CLASSES, 10)
    assert torch.allclose(before[..., :6], after[..., :6], atol=1e-6)
    assert not torch.allclose(before[..., 6:], after[..., 6:], atol=1e-3)


def test_patients_are_selected_from_each_diagnosis_in_turn() -> None:
    groups = {"p3": "NOR", "p1": "DCM", "p2": "DCM", "p4": "NOR", "p5": "DCM"}
    cases = [Case(f"{name}_frame01", name, "a", Path("absent.nii.gz"), group=group) for name, group in groups.items()]
    assert select_over_groups([*cases, *cases], 3) == ["p1", "p3", "p2"]
    assert sorted(select_over_groups(cases, None)) == ["p1", "p2", "p3", "p4", "p5"]


def test_the_ct_phantom_is_the_same_each_time_and_its_vessels_are_bright(tmp_path: Path) -> None:
    stored = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (case,) = write_volume(tmp_path / name, (64, 60, 8)).cases
        stored.append([np.asarray(nib.load(path).dataobj) for path in (case.image, case.label)])
    (image, label), again = stored
    assert np.array_equal(image, again[0])
    assert image.dtype == np.int16
    assert np.unique(label).tolist() == [0, 1, 2, 3]
    assert image[label == 1].mean() == pytest.approx(330, abs=5)
    assert (image < -500).any()
