"""Promises of every transform: rates, seeds and side effects."""

import inspect
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from uumamba.data.augment import Augment, nnunet_transforms
from uumamba.data.augmentation import IntensityTransform, Noise

RATES = {  # transform of each probability
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
    "mirror_probability": "mirror",
}
SPATIAL = ("affine", "mirror")
OFF: dict[str, Any] = dict.fromkeys(RATES, 0.0)
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
COUNT = 2000


def make_batch(shape: tuple[int, ...], *, count: int = 6, channels: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    label = torch.zeros(count, 1, *shape, dtype=torch.long)
    label[(..., *(slice(size // 4, size // 2) for size in shape))] = 2
    image = torch.rand(count, channels, *shape, generator=generator) + label
    return {"image": image, "label": label, "seed": torch.arange(count), "case_id": ["a"] * count}


def make_augment(**options: Any) -> Augment:
    return Augment(nnunet_transforms(**options))


def only(option: str, shape: tuple[int, ...]) -> Augment:
    axes = tuple(range(len(shape))) if option == "mirror_probability" else ()
    return make_augment(patch_size=shape, mirror_axes=axes, **(OFF | SURE | {option: 1.0}))


def is_near(share: float, rate: float, *, deviations: float = 4.0) -> bool:
    return abs(share - rate) <= deviations * (rate * (1 - rate) / COUNT) ** 0.5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("option", RATES)
def test_a_transform_changes_samples_in_the_same_way_in_any_batch(option: str, shape: tuple[int, ...]) -> None:
    augment, batch = only(option, shape), make_batch(shape)
    before = {key: batch[key].clone() for key in ("image", "label")}
    state = torch.get_rng_state()
    augmented = augment(batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(batch[key], before[key]) for key in before), "the given batch is unchanged"
    for key in before:
        assert (augmented[key].shape, augmented[key].dtype) == (before[key].shape, before[key].dtype)
    assert augmented["image"].isfinite().all()
    assert augmented["case_id"] == batch["case_id"]
    assert all(not torch.equal(*pair) for pair in zip(before["image"], augmented["image"], strict=True))
    assert torch.equal(augmented["label"], before["label"]) == (RATES[option] not in SPATIAL)
    drawn = augment.draw(batch)
    for transform in augment.transforms.values():
        if isinstance(transform, IntensityTransform) and drawn[transform.name].rows:
            assert torch.equal(augmented["image"], transform.apply(batch["image"], drawn[transform.name].values))
    # Another position in another batch, with another second channel, after draws from the global generator.
    order = [4, 2, 0]
    other = {key: batch[key][order].clone() for key in ("image", "label", "seed")}
    other["image"][:, 1] += 1.0
    torch.rand(7)
    again = augment(other)
    assert torch.equal(again["image"][:, 0], augmented["image"][order, 0])
    assert torch.equal(again["label"], augmented["label"][order])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("option", [option for option, name in RATES.items() if name in SPATIAL])
def test_a_spatial_transform_moves_the_label_with_the_image(option: str, shape: tuple[int, ...]) -> None:
    batch = make_batch(shape, channels=1)
    batch["image"] = (batch["label"] == 2).float()
    augmented = only(option, shape)(batch)
    inside, labelled = augmented["image"] > 0.5, augmented["label"] == 2
    assert 2 * (inside & labelled).sum() / (inside.sum() + labelled.sum()) > 0.93
    assert set(augmented["label"].unique().tolist()) == {0, 2}


@pytest.mark.parametrize("shape", SHAPES)
def test_with_all_probabilities_zero_the_batch_is_unchanged_bit_for_bit(shape: tuple[int, ...]) -> None:
    batch = make_batch(shape)
    augmented = make_augment(patch_size=shape, **OFF)(batch)
    assert all(torch.equal(augmented[key], batch[key]) for key in ("image", "label"))


def test_each_transform_has_its_own_rate_and_is_independent_of_the_others() -> None:
    rates = {option: 0.3 + 0.04 * place for place, option in enumerate(RATES)}
    augment = make_augment(patch_size=(8, 8), mirror_axes=(0,), **(SURE | rates))
    drawn = augment.draw(make_batch((8, 8), count=COUNT))
    fired = {option: set(drawn[name].rows) for option, name in RATES.items() if name != "affine"}
    affine = drawn["affine"]
    for option, changed in (
        ("rotation_probability", (affine.values["angles_deg"] != 0).flatten()),
        ("scale_probability", affine.values["scale"] != 1),
    ):
        fired[option] = {row for row, has in zip(affine.rows, changed.tolist(), strict=True) if has}
    assert fired.keys() == RATES.keys()
    for option, rate in rates.items():
        assert is_near(len(fired[option]) / COUNT, rate), option
    for one, other in itertools.combinations(fired, 2):
        # 5 standard deviations, because 55 pairs are compared.
        assert is_near(len(fired[one] & fired[other]) / COUNT, rates[one] * rates[other], deviations=5), (one, other)


def test_the_default_rates_are_those_of_nnunet() -> None:
    drawn = make_augment(patch_size=(8, 8), mirror_axes=(0, 1)).draw(make_batch((8, 8), count=COUNT, channels=1))
    assert drawn.keys() == NNUNET.keys()
    for name, rate in NNUNET.items():
        assert is_near(len(drawn[name].rows) / COUNT, rate), name


def test_every_probability_of_the_signature_is_tested() -> None:
    options = {name for name in inspect.signature(nnunet_transforms).parameters if name.endswith("_probability")}
    assert options - SURE.keys() == set(RATES)


def test_another_transform_does_not_change_draws_and_draws_can_be_applied_again() -> None:
    batch = make_batch((16, 16), count=100)
    augment = make_augment(patch_size=(16, 16))
    plain, more = (
        augment.draw(batch),
        make_augment(patch_size=(16, 16), bias_field_probability=0.5, mirror_axes=(0,)).draw(batch),
    )
    for name in set(plain) - {"bias_field", "mirror"}:
        assert plain[name].rows == more[name].rows
        assert all(torch.equal(values, more[name].values[key]) for key, values in plain[name].values.items())
    assert torch.equal(augment.apply(batch, plain)["image"], augment(batch)["image"])
    assert not torch.equal(augment(batch | {"seed": batch["seed"] + 100})["image"], augment(batch)["image"])


def test_a_larger_window_is_cropped_and_a_smaller_one_refused(refused: Any) -> None:
    batch = make_batch((30, 31))
    augmented = make_augment(patch_size=(24, 28), mirror_axes=(1,), **dict.fromkeys(RATES, 0.5))(batch)
    assert (augmented["image"].shape, augmented["label"].shape) == ((6, 2, 24, 28), (6, 1, 24, 28))
    for patch_size in ((32, 28), (8, 24, 28)):
        with refused("image", got=(30, 31)):
            make_augment(patch_size=patch_size)(batch)


@pytest.mark.parametrize(
    ("options", "key", "got"),
    [
        *(({option: 1.5}, option, 1.5) for option in [*RATES, *SURE]),
        *(({option: float("nan")}, option, None) for option in RATES),
        *(({name: (1.0, 0.9)}, name, (1.0, 0.9)) for name in ("scale", "gamma", "rotation_deg", "noise_std")),
        *(({name: (0.0, 1.0)}, name, (0.0, 1.0)) for name in ("scale", "gamma", "blur_sigma_voxels", "low_resolution")),
        *(
            ({name: (-0.1, 1.0)}, name, (-0.1, 1.0))
            for name in ("brightness", "contrast", "noise_std", "bias_field_strength")
        ),
        ({"scale": (float("nan"), 1.0)}, "scale", None),
        ({"scale": (1.0,)}, "scale", (1.0,)),
        ({"patch_size": (8,)}, "patch_size", (8,)),
        *(({"mirror_axes": axes}, "mirror_axes", axes) for axes in ((2,), (-1,), (0, 0))),
        ({"mirror_axes": (1,), "mirror_swaps": {0: [(1, 2)]}}, "mirror_swaps", [0]),
        *(
            ({"mirror_axes": (1,), "mirror_swaps": {1: pairs}}, "mirror_swaps", tuple(pairs))
            for pairs in ([(1, 2), (2, 3)], [(1, 256)])
        ),
    ],
)
def test_a_wrong_option_is_refused_by_name(refused: Any, options: dict[str, Any], key: str, got: Any) -> None:
    with refused(key) as error:
        make_augment(**({"patch_size": (8, 8)} | options))
    assert got in (None, error.value.got)


class Ceiling(IntensityTransform):
    """Toy transform: clips every sample."""

    name, probability = "ceiling", 1.0

    def draw(self, generator: torch.Generator, channels: int) -> dict[str, torch.Tensor]:
        return {"highest": torch.rand(channels, generator=generator)}

    def apply(self, image: torch.Tensor, values: dict[str, torch.Tensor]) -> torch.Tensor:
        return image.minimum(values["highest"].reshape(*values["highest"].shape, *(1,) * (image.ndim - 2)))


def test_a_transform_of_another_class_can_be_listed_and_leaves_the_given_batch_unchanged() -> None:
    batch = make_batch((8, 8))
    before = batch["image"].clone()
    alone = Augment([Ceiling()])(batch)["image"]
    assert torch.equal(batch["image"], before)
    assert (alone <= 1).all()
    after = Augment([*nnunet_transforms(patch_size=(8, 8), **OFF), Ceiling()])(batch)["image"]
    assert torch.equal(after, alone)


def test_two_transforms_of_the_same_name_are_refused(refused: Any) -> None:
    noise = Noise(probability=1.0, std=(0.0, 1.0))
    with refused("transforms", got=["noise", "noise"]):
        Augment([noise, noise])


def test_a_batch_without_seeds_is_refused(refused: Any) -> None:
    batch = make_batch((8, 8))
    del batch["seed"]
    with refused("batch", got="image, label, case_id"):
        make_augment(patch_size=(8, 8))(batch)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_the_result_on_a_gpu_equals_that_on_the_cpu(shape: tuple[int, ...]) -> None:
    augment = make_augment(patch_size=shape, mirror_axes=(0, 1), **dict.fromkeys(RATES, 0.5))
    batch = make_batch(shape)
    expected = augment(batch)
    got = augment({key: batch[key].cuda() for key in ("image", "label", "seed")})
    torch.testing.assert_close(got["image"].cpu(), expected["image"], rtol=0, atol=1e-3)
    assert (got["label"].cpu() != expected["label"]).float().mean() < 1e-3  # rounding may change the nearest voxel


@pytest.mark.parametrize("slices", [1, 3])
def test_channels_share_their_noise_and_neighbouring_slices_do_not(slices: int) -> None:
    values = {"std": torch.tensor([0.5]), "seed": torch.tensor([7])}
    blank = torch.zeros(1, 2 * slices, 12, 12)
    noise = Noise(probability=1.0, std=(0.0, 1.0), channels=2).apply(blank, values)[0].unflatten(0, (2, slices))
    assert torch.equal(noise[0], noise[1])
    one = Noise(probability=1.0, std=(0.0, 1.0)).apply(blank[:, :slices], values)[0]
    assert torch.equal(noise[0], one), "an image of one channel has the same noise"
    assert len({each.numpy().tobytes() for each in noise[0]}) == slices


@pytest.mark.parametrize("shape", SHAPES)
def test_all_other_changes_of_intensity_are_those_of_each_channel_alone(shape: tuple[int, ...]) -> None:
    channelwise = ("brightness", "contrast", "gamma", "inverted_gamma", "blur", "low_resolution")
    sure = OFF | SURE | {f"{name}_probability": 1.0 for name in channelwise}
    augment, batch = make_augment(patch_size=shape, channels=2, **sure), make_batch(shape)
    drawn = augment.draw(batch)
    both = augment.apply(batch, drawn)["image"]
    for channel in range(2):
        alone = {
            name: replace(each, values={key: value[:, channel : channel + 1] for key, value in each.values.items()})
            if name in channelwise
            else each
            for name, each in drawn.items()
        }
        single = augment.apply(batch | {"image": batch["image"][:, channel : channel + 1]}, alone)["image"]
        torch.testing.assert_close(both[:, channel : channel + 1], single, rtol=0, atol=1e-6)
    values = {name: next(iter(drawn[name].values.values())) for name in channelwise}
    assert not any(torch.equal(each[:, 0], each[:, 1]) for each in values.values()), "each channel has its own draws"


def test_a_channel_is_blurred_or_coarsened_on_its_own_with_probability_one_half() -> None:
    augment = make_augment(patch_size=(4, 4), **(OFF | {"blur_probability": 1.0, "low_resolution_probability": 1.0}))
    batch = {"image": torch.zeros(COUNT, 2, 4, 4), "label": torch.zeros(COUNT, 1, 4, 4), "seed": torch.arange(COUNT)}
    drawn = augment.draw(batch)
    for name, key in (("blur", "sigma_voxels"), ("low_resolution", "zoom")):
        changed = drawn[name].values[key].reshape(len(drawn[name].rows), 2, -1)[..., 0] > 0
        counts = torch.stack([(changed == torch.tensor(pair)).all(dim=1).sum() for pair in ([1, 0], [0, 1], [1, 1])])
        # Each of three outcomes has probability 1/4; four standard deviations of a binomial distribution.
        assert (counts - COUNT / 4).abs().max() < 4 * (COUNT * 3 / 16) ** 0.5
