"""Perturbations: identity at 0, exact lengths, and styles that keep anatomy."""

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from uumamba.domain_generalization import InputPerturbation, StylePerturbation
from uumamba.domain_generalization.perturb import StylePart, scale_to_length

PARTS = get_args(StylePart)


@pytest.fixture(params=[(8,), (6, 8), (4, 6, 8)], ids=["1-D", "2-D", "3-D"])
def image(request: pytest.FixtureRequest) -> Tensor:
    torch.manual_seed(0)
    return 3 + 2 * torch.randn(3, 2, *request.param)


def one_part(part: Any, **options: Any) -> StylePerturbation:
    return StylePerturbation(0.5, parts=(part,), **options)


@pytest.mark.parametrize("perturbation", [InputPerturbation(1.0), StylePerturbation(0.5)], ids=["input", "style"])
def test_zero_values_keep_the_image_and_every_value_has_a_gradient(image: Tensor, perturbation: Any) -> None:
    values = perturbation.start(image).requires_grad_()
    same = perturbation.apply(image, values)
    torch.testing.assert_close(same, image)
    (gradient,) = torch.autograd.grad((same * torch.randn_like(image)).sum(), values)
    assert (gradient != 0).all()


def test_a_direction_of_any_size_is_scaled_to_the_length_per_sample() -> None:
    torch.manual_seed(0)
    direction = torch.randn(4, 2, 5) * torch.tensor([1e-30, 1.0, 1e30, 0.0])[:, None, None]
    found = scale_to_length(direction, 0.3).flatten(1).norm(dim=1)
    torch.testing.assert_close(found, torch.tensor([0.3, 0.3, 0.3, 0.0]))


@pytest.mark.parametrize("part", PARTS)
def test_a_constant_image_does_not_change(part: Any) -> None:
    image = torch.full((1, 1, 4, 4), 5.0)
    perturbation = one_part(part)
    values = torch.full_like(perturbation.start(image), 0.4).requires_grad_()
    changed = perturbation.apply(image, values)
    torch.testing.assert_close(changed, image)
    assert torch.autograd.grad(changed.sum(), values)[0].isfinite().all()


def test_mean_and_std_change_in_units_of_the_standard_deviation(image: Tensor) -> None:
    axes = tuple(range(2, image.ndim))
    std, mean = torch.std_mean(image, axes, correction=0)
    values = torch.tensor([[0.2, -0.1, 0.3, 0.0]]).repeat(3, 1)  # of two channels the means, then the deviations
    changed = StylePerturbation(1.0, parts=("mean", "std")).apply(image, values)
    new_std, new_mean = torch.std_mean(changed, axes, correction=0)
    torch.testing.assert_close(new_mean, mean + torch.tensor([0.2, -0.1]) * std)
    torch.testing.assert_close(new_std, std * torch.tensor([math.exp(0.3), 1.0]))


def test_gamma_is_a_power_within_an_unchanged_range(image: Tensor) -> None:
    changed = one_part("gamma").apply(image, torch.full((3, 1), math.log(2)))
    flat, flat_changed = image.flatten(2), changed.flatten(2)
    low, high = flat.amin(2, keepdim=True), flat.amax(2, keepdim=True)
    torch.testing.assert_close(
        (flat_changed - low) / (high - low), ((flat - low) / (high - low)) ** 2, rtol=0, atol=1e-5
    )


def test_a_bias_field_is_smooth_multiplicative_and_the_same_for_all_channels() -> None:
    image = torch.rand(1, 2, 5, 7) + 1
    image[:, :, 0, 0] = 0  # the least of each channel, from which intensities count
    values = torch.linspace(-0.5, 0.5, 16)[None]
    field = (one_part("bias_field").apply(image, values) / image)[:, :, 1:].log()
    rows, columns = (torch.linspace(0, 1, n) for n in (5, 7))
    # Control points on a line give that line: Bernstein polynomials reproduce it. 4 rows of points are 4/15 apart.
    expected = -0.5 + (12 * rows[:, None] + 3 * columns) / 15
    torch.testing.assert_close(field, expected[1:].expand(1, 2, 4, 7), rtol=0, atol=1e-5)


@pytest.mark.parametrize("part", PARTS)
def test_a_style_keeps_the_order_of_intensities(part: Any) -> None:
    image = torch.linspace(0, 1, 50).view(1, 1, 50)
    perturbation = one_part(part)
    values = torch.full_like(perturbation.start(image), 0.2)
    assert (perturbation.apply(image, values).diff() > 0).all()


def test_the_radius_by_root_mean_square_grows_with_the_root_of_the_entries() -> None:
    assert InputPerturbation(rms=0.05).length(torch.zeros(2, 1, 10, 40)) == pytest.approx(0.05 * 20)
    assert InputPerturbation(0.7).length(torch.zeros(2, 1, 10, 40)) == 0.7


@pytest.mark.parametrize("sizes", [(None, None), (1.0, 0.1)])
def test_an_input_perturbation_takes_exactly_one_size(sizes: tuple[Any, Any], refused: Any) -> None:
    with refused("rms", got=sizes):
        InputPerturbation(*sizes)


def test_a_style_of_inputs_without_spatial_axes_is_refused(refused: Any) -> None:
    with refused("image", got=(4, 10)):
        StylePerturbation(0.5).start(torch.zeros(4, 10))
