"""The whole set: identity, rates, independence, and what each transform may touch."""

import inspect
import itertools
from typing import Any

import pytest
import torch

from uumamba.data.augment import Augment

RATES = {
    "rotation_probability": "affine",
    "scale_probability": "affine",
    "bias_field_probability": "bias_field",
    "noise_probability": "noise",
    "blur_probability": "blur",
    "brightness_probability": "brightness",
    "contrast_probability": "contrast",
    "low_resolution_probability": "low_resolution",
    "inverted_gamma_probability": "inverted_gamma",
    "gamma_probability": "gamma",
}
"""Each option of a rate, and the transform that it governs."""
SPATIAL = ("affine", "mirror")
OFF: dict[str, Any] = dict.fromkeys(RATES, 0.0) | {"mirror_axes": ()}
SURE: dict[str, Any] = {"blur_channel_probability": 1.0, "low_resolution_channel_probability": 1.0}
NNUNET = {
    "affine": 1 - 0.8 * 0.8,
    "bias_field": 0.0,
    "noise": 0.1,
    "blur": 0.2 * 0.5,
    "brightness": 0.15,
    "contrast": 0.15,
    "low_resolution": 0.25 * 0.5,
    "inverted_gamma": 0.1,
    "gamma": 0.3,
    "mirror": 0.75,
}
SHAPES = [(24, 28), (16, 18, 20), (4, 24, 28)]


def make_batch(shape: tuple[int, ...], *, count: int = 6, channels: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    label = torch.zeros(count, 1, *shape, dtype=torch.long)
    label[(..., *(slice(size // 4, size // 2) for size in shape))] = 2
    image = torch.rand(count, channels, *shape, generator=generator) + label
    return {"image": image, "label": label, "seed": torch.arange(count), "case_id": ["a"] * count}


def only(option: str, **more: Any) -> dict[str, Any]:
    """Options under which one transform is sure and every other is off."""
    return OFF | SURE | {option: 1.0} | more


@pytest.mark.parametrize("shape", SHAPES)
def test_with_every_probability_zero_the_batch_comes_back_bit_for_bit(shape: tuple[int, ...]) -> None:
    batch = make_batch(shape)
    augmented = Augment(patch_size=shape, **OFF)(batch)
    assert torch.equal(augmented["image"], batch["image"])
    assert torch.equal(augmented["label"], batch["label"])
    assert augmented["case_id"] == batch["case_id"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("option", RATES)
def test_each_intensity_transform_changes_the_image_alone_and_each_spatial_one_the_label_too(
    option: str, shape: tuple[int, ...]
) -> None:
    batch = make_batch(shape, channels=2)
    augmented = Augment(patch_size=shape, **only(option))(batch)
    for before, after in zip(batch["image"], augmented["image"], strict=True):
        assert not torch.equal(before, after)
    assert augmented["image"].isfinite().all()
    assert torch.equal(augmented["label"], batch["label"]) == (RATES[option] not in SPATIAL)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("option", ["rotation_probability", "scale_probability", "mirror_probability"])
def test_a_spatial_transform_moves_the_label_with_the_image(option: str, shape: tuple[int, ...]) -> None:
    batch = make_batch(shape)
    batch["image"] = (batch["label"] == 2).float()
    axes = tuple(range(len(shape))) if option == "mirror_probability" else ()
    augmented = Augment(patch_size=shape, **only(option, mirror_axes=axes))(batch)
    inside, labelled = augmented["image"] > 0.5, augmented["label"] == 2
    assert 2 * (inside & labelled).sum() / (inside.sum() + labelled.sum()) > 0.93
    assert not torch.equal(augmented["label"], batch["label"])


def test_with_the_defaults_each_transform_fires_at_the_rate_of_nnunet() -> None:
    count = 2000
    batch = make_batch((8, 8), count=count)
    drawn = Augment(patch_size=(8, 8), mirror_axes=(0, 1)).draw(batch)
    assert drawn.keys() == NNUNET.keys()
    for name, rate in NNUNET.items():
        assert abs(len(drawn[name].rows) / count - rate) <= 4 * (rate * (1 - rate) / count) ** 0.5, name


@pytest.mark.parametrize("option", RATES)
def test_each_transform_fires_at_the_rate_that_is_asked_for(option: str) -> None:
    count, rate = 2000, 0.37
    drawn = Augment(patch_size=(8, 8), **only(option, **{option: rate})).draw(make_batch((8, 8), count=count))
    assert abs(len(drawn[RATES[option]].rows) / count - rate) <= 4 * (rate * (1 - rate) / count) ** 0.5
    assert all(not other for name, other in drawn.items() if name != RATES[option])


def test_every_probability_of_the_signature_is_under_test() -> None:
    options = {name for name in inspect.signature(Augment).parameters if name.endswith("_probability")}
    apart = {"mirror_probability", "blur_channel_probability", "low_resolution_channel_probability"}
    assert options - apart == set(RATES)


def test_any_two_transforms_fire_independently_of_each_other() -> None:
    count = 2000
    drawn = Augment(patch_size=(8, 8), **(SURE | dict.fromkeys(RATES, 0.5))).draw(make_batch((8, 8), count=count))
    fired = {name: set(drawn[name].rows) for name in set(RATES.values()) - {"affine"}}
    for one, other in itertools.combinations(sorted(fired), 2):
        # 28 pairs are looked at, hence 5 standard deviations.
        assert abs(len(fired[one] & fired[other]) / count - 0.25) <= 5 * (0.25 * 0.75 / count) ** 0.5, (one, other)


def test_rotation_and_scaling_fire_independently_of_each_other() -> None:
    count = 2000
    drawn = Augment(patch_size=(8, 8)).draw(make_batch((8, 8), count=count))["affine"]
    rotated = (drawn.values["angles_deg"] != 0).sum() / count
    scaled = (drawn.values["scale"] != 1).sum() / count
    tolerance = 4 * (0.2 * 0.8 / count) ** 0.5
    assert abs(rotated - 0.2) <= tolerance
    assert abs(scaled - 0.2) <= tolerance


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sample_comes_out_the_same_at_any_place_of_any_batch(shape: tuple[int, ...]) -> None:
    augment = Augment(patch_size=shape, mirror_axes=(0, 1), **dict.fromkeys(RATES, 0.5))
    batch = make_batch(shape)
    whole = augment(batch)
    order = [4, 2, 0]
    part = augment({key: batch[key][order] for key in ("image", "label", "seed")})
    assert torch.equal(part["image"], whole["image"][order])
    assert torch.equal(part["label"], whole["label"][order])


def test_one_transform_more_does_not_shift_the_draws_of_the_others() -> None:
    batch = make_batch((16, 16), count=100)
    plain = Augment(patch_size=(16, 16)).draw(batch)
    more = Augment(patch_size=(16, 16), bias_field_probability=0.5, mirror_axes=(0,)).draw(batch)
    for name in set(plain) - {"bias_field", "mirror"}:
        assert plain[name].rows == more[name].rows
        for key, values in plain[name].values.items():
            assert torch.equal(values, more[name].values[key])


def test_the_same_batch_is_augmented_the_same_whatever_torch_drew_in_between() -> None:
    augment = Augment(patch_size=(24, 28), mirror_axes=(0, 1), bias_field_probability=0.5)
    batch = make_batch((24, 28))
    first = augment(batch)
    torch.rand(100)
    second = augment(batch)
    assert torch.equal(first["image"], second["image"])
    state = torch.get_rng_state()
    augment(batch)
    assert torch.equal(torch.get_rng_state(), state)


def test_other_seeds_give_other_results() -> None:
    augment = Augment(patch_size=(24, 28))
    batch = make_batch((24, 28))
    assert not torch.equal(augment(batch)["image"], augment(batch | {"seed": batch["seed"] + 100})["image"])


def test_the_given_batch_is_not_written_to() -> None:
    batch = make_batch((24, 28))
    image, label = batch["image"].clone(), batch["label"].clone()
    Augment(patch_size=(24, 28), mirror_axes=(0, 1), **(SURE | dict.fromkeys(RATES, 1.0)))(batch)
    assert torch.equal(batch["image"], image)
    assert torch.equal(batch["label"], label)


def test_what_was_drawn_can_be_applied_again() -> None:
    augment = Augment(patch_size=(24, 28), **dict.fromkeys(RATES, 1.0))
    batch = make_batch((24, 28))
    drawn = augment.draw(batch)
    assert torch.equal(augment.apply(batch, drawn)["image"], augment(batch)["image"])


def test_a_wider_window_is_cropped_to_the_patch() -> None:
    batch = make_batch((30, 31))
    augmented = Augment(patch_size=(24, 28), mirror_axes=(1,), **dict.fromkeys(RATES, 0.5))(batch)
    assert augmented["image"].shape == (6, 1, 24, 28)
    assert augmented["label"].shape == (6, 1, 24, 28)
    assert augmented["label"].dtype == torch.int64


def test_a_batch_without_seeds_is_refused() -> None:
    batch = make_batch((8, 8))
    del batch["seed"]
    with pytest.raises(ValueError, match="The batch to augment lacks seed; it has image, label, case_id"):
        Augment(patch_size=(8, 8))(batch)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_on_an_accelerator_the_result_is_that_of_the_cpu(shape: tuple[int, ...]) -> None:
    augment = Augment(patch_size=shape, mirror_axes=(0, 1), **dict.fromkeys(RATES, 0.5))
    batch = make_batch(shape)
    expected = augment(batch)
    got = augment({key: batch[key].cuda() for key in ("image", "label", "seed")})
    torch.testing.assert_close(got["image"].cpu(), expected["image"], rtol=0, atol=1e-3)
    assert (got["label"].cpu() != expected["label"]).float().mean() < 1e-3  # nearest: a voxel may lie on the edge
