import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from uumamba.quantization import fake_quantize
from uumamba.quantization.levels import SMALLEST_SCALE, first_scale, level_range

BITS = range(2, 9)


def gradients(function: Any, values: Tensor, scale: Tensor, incoming: Tensor, *rest: Any, **how: Any) -> list[Tensor]:
    values, scale = values.clone().requires_grad_(), scale.clone().requires_grad_()
    output = function(values, scale, *rest, **how)
    return [output.detach(), *torch.autograd.grad(output, (values, scale), incoming)]


@given(bits=st.sampled_from(BITS), signed=st.booleans(), scale=st.floats(0.01, 10), seed=st.integers(0, 99))
def test_there_are_at_most_as_many_values_as_the_bits_can_tell(
    bits: int, signed: bool, scale: float, seed: int
) -> None:
    low, high = level_range(bits, signed=signed)
    values = torch.randn(500, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    rounded = fake_quantize(values, torch.tensor(scale, dtype=torch.float64), low, high)
    assert len(rounded.unique()) <= 2**bits
    expected = [scale * round(min(max(value / scale, low), high)) for value in values.tolist()]
    assert rounded.tolist() == pytest.approx(expected)


def test_ties_are_rounded_to_even_as_in_torch() -> None:
    values, (low, high) = torch.arange(-8, 8, dtype=torch.float64) / 2, level_range(4)
    expected = torch.fake_quantize_per_tensor_affine(values, 1.0, 0, low, high)
    assert torch.equal(fake_quantize(values, torch.ones((), dtype=torch.float64), low, high), expected)


@pytest.mark.parametrize("bits", BITS)
def test_gradients_equal_torchs_learnable_fake_quantisation_outside_the_half_bins(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    low, high = level_range(bits)
    ratio = torch.empty(4000, dtype=torch.float32).uniform_(low - 3, high + 3, generator=generator)
    half_bin = ((ratio > high) & (ratio < high + 0.5)) | ((ratio < low) & (ratio > low - 0.5))
    ratio = ratio[~half_bin]
    scale, incoming = torch.tensor([0.3]), torch.randn(ratio.shape, generator=generator)
    values = ratio * scale
    factor = 1 / math.sqrt(values.numel() * high)
    ours = gradients(fake_quantize, values, scale, incoming, low, high)
    theirs = gradients(
        torch._fake_quantize_learnable_per_tensor_affine, values, scale, incoming, torch.zeros(1), low, high, factor
    )
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_channels_have_gradients_of_their_own_as_in_torch(axis: int) -> None:
    generator = torch.Generator().manual_seed(axis)
    low, high = level_range(3)
    scale = torch.tensor([0.1, 0.2, 0.5])
    shape = (3, 1, 1) if axis == 0 else (1, 3, 1)
    levels = torch.randint(low, high + 1, (3, 3, 50), generator=generator)
    values = (levels + torch.rand(levels.shape, generator=generator) * 0.8 - 0.4).clamp(low, high) * scale.view(shape)
    values[..., 0] *= 9  # far outside, where it is not near 0
    ratio = values / scale.view(shape)
    values = torch.where((ratio > high) | (ratio < low), ratio.sign() * 9 * scale.view(shape), values)
    incoming = torch.randn(values.shape, generator=generator)
    factor = 1 / math.sqrt(150 * high)
    ours = gradients(fake_quantize, values, scale.view(shape), incoming, low, high)
    theirs = gradients(
        torch._fake_quantize_learnable_per_channel_affine,
        *(values, scale, incoming, torch.zeros(3), axis, low, high, factor),
    )
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.view_as(other), other, rtol=1e-5, atol=1e-5)


def test_in_the_half_bin_above_the_range_the_value_counts_as_clipped() -> None:
    # 3 bits: levels -4 to 3. Torch rounds 3.03 to 3 first and so takes it as inside: dv = 1, ds = 3 - 3.03.
    value, scale = torch.tensor([3.03]), torch.tensor(1.0)
    _, of_value, of_scale = gradients(fake_quantize, value, scale, torch.ones(1), -4, 3, features=1)
    assert of_value.item() == 0
    assert of_scale.item() == pytest.approx(3 / math.sqrt(3))


def test_a_value_at_the_bound_is_inside() -> None:
    values, scale = torch.tensor([-4.0, 3.0]), torch.tensor(1.0)
    _, of_values, of_scale = gradients(fake_quantize, values, scale, torch.ones(2), -4, 3)
    assert of_values.tolist() == [1, 1]
    assert of_scale.item() == 0


def test_rounding_twice_changes_nothing() -> None:
    values, scale = torch.randn(500), torch.tensor(0.25)  # a power of two, so that the quotient is exact
    once = fake_quantize(values, scale, -4, 3)
    assert torch.equal(fake_quantize(once, scale, -4, 3), once)


def test_the_gradient_of_the_scale_shrinks_with_the_features_of_a_sample_and_the_highest_level() -> None:
    values, scale = torch.randn(8, 10), torch.tensor(0.5)
    full = gradients(fake_quantize, values, scale, torch.ones(8, 10), 0, 1, features=1)[2]
    scaled = gradients(fake_quantize, values, scale, torch.ones(8, 10), 0, 1, features=10)[2]
    torch.testing.assert_close(scaled, full / math.sqrt(10))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_values_keep_their_type_and_the_scale_its_own(dtype: torch.dtype) -> None:
    values, scale = torch.randn(50).to(dtype), torch.tensor(0.1)
    rounded, of_values, of_scale = gradients(fake_quantize, values, scale, torch.ones(50, dtype=dtype), -4, 3)
    assert (rounded.dtype, of_values.dtype, of_scale.dtype) == (dtype, dtype, torch.float32)
    assert len(rounded.unique()) <= 8
    values = torch.randn(5000).to(dtype)  # their quotients are not rounded to their own type before they are to levels
    exact = fake_quantize(values.to(torch.promote_types(dtype, torch.float32)), scale, -128, 127)
    assert torch.equal(fake_quantize(values, scale, -128, 127), exact.to(dtype))


def test_nan_stays_and_infinity_becomes_the_outermost_level() -> None:
    rounded = fake_quantize(torch.tensor([float("nan"), float("inf"), -float("inf")]), torch.tensor(0.5), -4, 3)
    assert rounded.isnan().tolist() == [True, False, False]
    assert rounded[1:].tolist() == [1.5, -2.0]


def test_a_scale_that_fell_below_zero_counts_as_the_smallest_and_can_rise_again() -> None:
    values, scale = torch.tensor([1.0]), torch.tensor(-0.1)
    rounded, _, of_scale = gradients(fake_quantize, values, scale, -torch.ones(1), -4, 3, features=1)
    assert rounded.item() == pytest.approx(3 * SMALLEST_SCALE)
    assert of_scale.item() == pytest.approx(-3 / math.sqrt(3))  # descent raises it


def test_gradients_can_be_differentiated_again() -> None:
    values = torch.tensor([0.6, -1.3, 9.0], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    rounded = fake_quantize(values, scale, -4, 3, features=1)
    (of_scale,) = torch.autograd.grad(rounded.sum(), scale, create_graph=True)
    (again,) = torch.autograd.grad(of_scale, values)
    # inside, the slope is round(v/s) - v/s, whose derivative in v is -1/s; outside it is constant
    torch.testing.assert_close(again, torch.tensor([-2.0, -2.0, 0.0]) / math.sqrt(3))


def test_the_first_scale_is_twice_the_mean_by_the_root_of_the_highest_level() -> None:
    weight = torch.tensor([[1.0, -3.0], [0.5, 0.5]])
    assert first_scale(weight, 4).item() == 2 * 1.25 / 2
    assert first_scale(weight, 4, channel_axis=1).tolist() == [[0.75, 1.75]]
    assert first_scale(torch.zeros(3), 1).item() == pytest.approx(SMALLEST_SCALE)


def test_whole_numbers_are_refused() -> None:
    with pytest.raises(TypeError, match=r"must be floating point.*torch\.int64"):
        fake_quantize(torch.tensor([1, 2]), torch.tensor(0.5), -4, 3)
