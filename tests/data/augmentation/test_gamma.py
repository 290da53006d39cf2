"""Gamma, plain and inverted."""

import pytest
import torch

from uumamba.data.augmentation.gamma import Gamma


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("shape", [(16, 18), (5, 8, 9)])
def test_gamma_keeps_mean_deviation_and_the_order_of_intensities(inverted: bool, shape: tuple[int, ...]) -> None:
    image = torch.randn(2, 2, *shape)
    bent = Gamma(inverted=inverted).apply(image, {"gamma": torch.tensor([[0.7, 1.5], [1.2, 0.9]])})
    flat, bent_flat = image.flatten(2), bent.flatten(2)
    torch.testing.assert_close(bent_flat.mean(2), flat.mean(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(bent_flat.std(2), flat.std(2))
    assert (bent_flat.gather(2, flat.argsort(2)).diff(dim=2) >= 0).all()
    assert not torch.allclose(bent, image, atol=0.01)


def test_gamma_agrees_with_its_formula_on_four_voxels() -> None:
    image = torch.tensor([1.0, 2.0, 3.0, 5.0]).reshape(1, 1, 2, 2)
    unit = torch.tensor([0.0, 0.25, 0.5, 1.0])
    for inverted, power in [(False, unit**2), (True, 1 - (1 - unit) ** 2)]:
        bent = Gamma(inverted=inverted).apply(image, {"gamma": torch.tensor([[2.0]])}).flatten()
        standardised = (power - power.mean()) / power.std()
        torch.testing.assert_close(bent, standardised * image.std() + image.mean())


def test_inverted_gamma_is_gamma_of_the_negative() -> None:
    image, values = torch.randn(1, 1, 9, 9), {"gamma": torch.tensor([[1.4]])}
    torch.testing.assert_close(Gamma(inverted=True).apply(image, values), -Gamma().apply(-image, values))


@pytest.mark.parametrize("inverted", [False, True])
def test_a_power_of_one_is_the_identity(inverted: bool) -> None:
    image = torch.randn(1, 2, 9, 9)
    same = Gamma(inverted=inverted).apply(image, {"gamma": torch.ones(1, 2)})
    torch.testing.assert_close(same, image, rtol=0, atol=1e-5)


@pytest.mark.parametrize("inverted", [False, True])
def test_a_constant_channel_stays_as_it_is(inverted: bool) -> None:
    image = torch.full((1, 1, 6, 6), -2.5)
    torch.testing.assert_close(Gamma(inverted=inverted).apply(image, {"gamma": torch.tensor([[0.7]])}), image)
