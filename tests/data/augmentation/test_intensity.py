"""Formula and identity of each intensity transform."""

from typing import Any

import pytest
import torch
from torch import Tensor

from uumamba.data.augmentation import BiasField, Brightness, Contrast, Gamma, Noise
from uumamba.data.augmentation.parameters import draw_for_batch

FACTOR: dict[str, Any] = {"probability": 1.0, "multiplier": (0.75, 1.25)}
GAMMA: dict[str, Any] = {"probability": 1.0, "gamma": (0.7, 1.5)}
FIELD: dict[str, Any] = {"probability": 1.0, "strength": (0.1, 0.5)}


def drawn_field(count: int, dimensions: int = 2, **options: tuple[float, float]) -> dict[str, Tensor]:
    field = BiasField(**(FIELD | options), dimensions=dimensions)
    return draw_for_batch(field.name, range(count), lambda generator: field.draw(generator, channels=1)).values


def test_brightness_multiplies_each_channel_by_its_factor() -> None:
    image, multiplier = torch.randn(2, 2, 4, 5), torch.tensor([[0.8, 1.0], [1.2, 1.1]])
    bright = Brightness(**FACTOR).apply(image, {"multiplier": multiplier})
    for sample, channel in torch.cartesian_prod(torch.arange(2), torch.arange(2)):
        assert torch.equal(bright[sample, channel], image[sample, channel] * multiplier[sample, channel])


@pytest.mark.parametrize(
    ("factor", "expected"),
    [(2.0, [0.0, 3.0, 5.0, 11.0]), (0.5, [2.5, 4.5, 5.0, 8.0]), (1.0, [0.0, 4.0, 5.0, 11.0])],  # -5 and 17 are clipped
)
def test_contrast_stretches_about_the_mean_and_clips_to_the_old_range(factor: float, expected: list[float]) -> None:
    image = torch.tensor([0.0, 4.0, 5.0, 11.0]).reshape(1, 1, 2, 2)  # mean 5
    assert Contrast(**FACTOR).apply(image, {"multiplier": torch.tensor([[factor]])}).flatten().tolist() == expected


@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_equals_its_formula_and_keeps_mean_deviation_and_order(inverted: bool) -> None:
    image = torch.tensor([1.0, 2.0, 3.0, 5.0]).reshape(1, 1, 2, 2)
    unit = torch.tensor([0.0, 0.25, 0.5, 1.0])
    power = 1 - (1 - unit) ** 2 if inverted else unit**2
    curved = Gamma(**GAMMA, inverted=inverted).apply(image, {"gamma": torch.tensor([[2.0]])}).flatten()
    torch.testing.assert_close(curved, (power - power.mean()) / power.std() * image.std() + image.mean())
    volume = torch.randn(2, 2, 5, 8, 9)
    curved = (
        Gamma(**GAMMA, inverted=inverted).apply(volume, {"gamma": torch.tensor([[0.7, 1.5], [1.2, 0.9]])}).flatten(2)
    )
    torch.testing.assert_close(curved.mean(2), volume.flatten(2).mean(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(curved.std(2), volume.flatten(2).std(2))
    assert (curved.gather(2, volume.flatten(2).argsort(2)).diff(dim=2) >= 0).all()


@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_of_one_or_of_a_constant_is_the_identity(inverted: bool) -> None:
    image, gamma = torch.randn(1, 2, 9, 9), torch.tensor([[1.0, 0.7]])
    image[:, 1] = -2.5
    torch.testing.assert_close(
        Gamma(**GAMMA, inverted=inverted).apply(image, {"gamma": gamma}),
        image,
        rtol=0,
        atol=1e-5,
    )


def test_noise_depends_on_its_seed_and_has_the_drawn_deviation_and_mean_0() -> None:
    values = {"std": torch.tensor([0.05, 0.2, 0.0]), "seed": torch.tensor([1, 2, 5])}
    image = torch.zeros(3, 1, 200, 200)
    noise = Noise(probability=1.0, std=(0.0, 0.1)).apply(image, values)
    assert torch.equal(noise, Noise(probability=1.0, std=(0.0, 0.1)).apply(image, values))
    assert torch.equal(noise[2], image[2])
    for sample, std in zip(noise[:2], values["std"], strict=False):
        # The mean of n values has error std / sqrt(n), their deviation std / sqrt(2 n); n = 40 000.
        assert abs(sample.mean()) < 4 * std / 200
        assert abs(sample.std() - std) < 4 * std / 282
    assert not torch.allclose(noise[0] / 0.05, noise[1] / 0.2, atol=0.1)


@pytest.mark.parametrize("shape", [(20, 24), (6, 12, 10)])
def test_the_bias_field_is_the_scaled_exponential_of_its_polynomial(shape: tuple[int, ...]) -> None:
    values = drawn_field(3, len(shape))
    degree = sum(torch.meshgrid(*[torch.arange(4)] * len(shape), indexing="ij"), torch.tensor(0))
    assert torch.equal(values["coefficients"][0] != 0, (degree >= 1) & (degree <= 3))
    image = torch.rand(3, 1, *shape)
    image[(..., *(0,) * len(shape))] = 0.0  # the field multiplies the difference to the smallest value
    changed = BiasField(**FIELD, dimensions=len(shape)).apply(image, values)
    positions = torch.meshgrid(*(torch.linspace(-1, 1, size) for size in shape), indexing="ij")
    for sample in range(3):
        polynomial = torch.zeros(shape)
        for powers in torch.cartesian_prod(*[torch.arange(4)] * len(shape)).tolist():
            term = torch.stack([position**power for position, power in zip(positions, powers, strict=True)]).prod(0)
            polynomial += values["coefficients"][sample][tuple(powers)] * term
        field = torch.exp(values["strength"][sample] * polynomial / polynomial.abs().max())
        torch.testing.assert_close(changed[sample, 0], image[sample, 0] * field)


def test_the_strength_limits_the_change_of_intensities_by_the_bias_field() -> None:
    values, image = drawn_field(20), torch.rand(20, 1, 16, 16) + 1.0
    image[:, :, 0, 0] = 0.0
    ratio = (BiasField(**FIELD, dimensions=2).apply(image, values) / image).flatten(1)[:, 1:].log().abs().amax(1)
    assert (ratio <= values["strength"] + 1e-5).all()
    assert (ratio > 0.5 * values["strength"]).all()
    torch.testing.assert_close(
        BiasField(**FIELD, dimensions=2).apply(image, drawn_field(20, strength=(0.0, 0.0))),
        image,
    )
