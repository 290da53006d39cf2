"""The bias field."""

import pytest
import torch

from uumamba.data.augmentation.bias_field import BiasField
from uumamba.data.augmentation.parameters import draw_for_batch


def drawn_values(field: BiasField, count: int) -> dict[str, torch.Tensor]:
    return draw_for_batch(field.name, range(count), lambda generator: field.draw(generator, channels=1)).values


@pytest.mark.parametrize("shape", [(20, 24), (6, 12, 10)])
def test_the_field_is_the_scaled_exponential_of_its_polynomial(shape: tuple[int, ...]) -> None:
    values = drawn_values(BiasField(probability=1.0, dimensions=len(shape)), 3)
    image = torch.rand(3, 1, *shape)
    image[(..., *(0,) * len(shape))] = 0.0  # so that the smallest value is 0 and the image is multiplied outright
    changed = BiasField(dimensions=len(shape)).apply(image, values)
    positions = torch.meshgrid(*(torch.linspace(-1, 1, size) for size in shape), indexing="ij")
    for sample in range(3):
        polynomial = torch.zeros(shape)
        for powers in torch.cartesian_prod(*[torch.arange(4)] * len(shape)).tolist():
            term = torch.ones(shape)
            for position, power in zip(positions, powers, strict=True):
                term = term * position**power
            polynomial += values["coefficients"][sample][tuple(powers)] * term
        field = torch.exp(values["strength"][sample] * polynomial / polynomial.abs().max())
        torch.testing.assert_close(changed[sample, 0], image[sample, 0] * field)


def test_no_intensity_changes_by_more_than_the_drawn_strength() -> None:
    values = drawn_values(BiasField(probability=1.0), 20)
    image = torch.rand(20, 1, 16, 16) + 1.0
    image[:, :, 0, 0] = 0.0
    ratio = (BiasField().apply(image, values) / image).flatten(1)[:, 1:].log().abs().amax(1)
    assert (ratio <= values["strength"] + 1e-5).all()
    assert (ratio > 0.5 * values["strength"]).all()


def test_coefficients_have_total_degree_one_to_three() -> None:
    coefficients = drawn_values(BiasField(probability=1.0), 1)["coefficients"][0]
    degree = torch.arange(4)[:, None] + torch.arange(4)[None]
    assert torch.equal(coefficients != 0, (degree >= 1) & (degree <= 3))


def test_a_strength_of_zero_is_the_identity() -> None:
    values = drawn_values(BiasField(probability=1.0, strength=(0.0, 0.0)), 2)
    image = torch.randn(2, 1, 9, 9)
    torch.testing.assert_close(BiasField().apply(image, values), image)
