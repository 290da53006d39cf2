import math
from typing import Any

import pytest
import torch
from torch import Tensor

from uumamba.quantization import fake_quantize
from uumamba.quantization.levels import SMALLEST_SCALE, first_scale, level_range


def gradients(function: Any, values: Tensor, scale: Tensor, incoming: Tensor, *rest: Any, **how: Any) -> list[Tensor]:
    values, scale = values.clone().requires_grad_(), scale.clone().requires_grad_()
    output = function(values, scale, *rest, **how)
    return [output.detach(), *torch.autograd.grad(output, (values, scale), incoming)]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_values_and_gradients_equal_torchs_fake_quantization_outside_the_half_bins(
    bits: int, signed: bool, axis: int | None
) -> None:
    low, high = level_range(bits, signed=signed)
    generator = torch.Generator().manual_seed(bits)
    ratio = torch.empty(3, 3, 60).uniform_(low - 3, high + 3, generator=generator)
    # Torch rounds before it clips, so a value within half a level outside the range is inside there; avoid such values.
    half_bin = ((ratio > high) & (ratio < high + 0.5)) | ((ratio < low) & (ratio > low - 0.5))
    ratio = torch.where(half_bin, ratio.sign() * (high + 9), ratio)
    scale = torch.tensor([0.25, 0.5, 2.0])  # powers of two: quotients and products are exact
    shape = {None: (1,), 0: (3, 1, 1), 1: (1, 3, 1)}[axis]
    scale = scale[:1] if axis is None else scale
    values, incoming = ratio * scale.view(shape), torch.randn(ratio.shape, generator=generator)
    factor = 1 / math.sqrt(values.numel() / scale.numel() * high)
    ours = gradients(fake_quantize, values, scale.view(shape), incoming, low, high)
    rest = (torch.zeros_like(scale), *([] if axis is None else [axis]), low, high, factor)
    kind = "tensor" if axis is None else "channel"
    theirs = gradients(getattr(torch, f"_fake_quantize_learnable_per_{kind}_affine"), values, scale, incoming, *rest)
    assert len((ours[0] / scale.view(shape)).unique()) <= 2**bits
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    # Sums of at most 540 terms of at most 4 |level| each, in two orders.
    torch.testing.assert_close(ours[2].view_as(scale), theirs[2], rtol=1e-5, atol=540 * 4 * 128 * 2**-24 * factor)


def test_ties_are_rounded_to_even_as_in_torch() -> None:
    values, (low, high) = torch.arange(-8, 8, dtype=torch.float64) / 2, level_range(4)
    expected = torch.fake_quantize_per_tensor_affine(values, 1.0, 0, low, high)
    assert torch.equal(fake_quantize(values, torch.ones((), dtype=torch.float64), low, high), expected)


def test_a_value_above_the_highest_level_is_clipped_and_a_value_at_a_bound_is_not() -> None:
    # 3 bits: levels -4 to 3. Torch rounds 3.03 to 3 before the comparison, so there dv = 1, ds = 3 - 3.03.
    values, scale = torch.tensor([3.03, -4.0, 3.0]), torch.tensor(1.0)
    _, values_grad, scale_grad = gradients(fake_quantize, values, scale, torch.ones(3), -4, 3, features=1)
    assert values_grad.tolist() == [0, 1, 1]
    assert scale_grad.item() == pytest.approx(3 / math.sqrt(3))


def test_the_gradient_of_the_scale_shrinks_with_the_features_of_a_sample_and_the_highest_level() -> None:
    values, scale = torch.randn(8, 10), torch.tensor(0.5)
    full = gradients(fake_quantize, values, scale, torch.ones(8, 10), 0, 1, features=1)[2]
    scaled = gradients(fake_quantize, values, scale, torch.ones(8, 10), 0, 1, features=10)[2]
    torch.testing.assert_close(scaled, full / math.sqrt(10))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_values_keep_their_type_and_the_scale_its_own(dtype: torch.dtype) -> None:
    values, scale = torch.randn(50).to(dtype), torch.tensor(0.1)
    rounded, values_grad, scale_grad = gradients(fake_quantize, values, scale, torch.ones(50, dtype=dtype), -4, 3)
    assert (rounded.dtype, values_grad.dtype, scale_grad.dtype) == (dtype, dtype, torch.float32)
    assert len(rounded.unique()) <= 8
    values = torch.randn(5000).to(dtype)  # quotients are not rounded to this type before they are rounded to levels
    exact = fake_quantize(values.to(torch.promote_types(dtype, torch.float32)), scale, -128, 127)
    assert torch.equal(fake_quantize(values, scale, -128, 127), exact.to(dtype))


def test_nan_stays_and_infinity_becomes_the_lowest_or_highest_level() -> None:
    rounded = fake_quantize(torch.tensor([float("nan"), float("inf"), -float("inf")]), torch.tensor(0.5), -4, 3)
    assert rounded.isnan().tolist() == [True, False, False]
    assert rounded[1:].tolist() == [1.5, -2.0]


def test_a_negative_scale_is_replaced_by_the_smallest_and_keeps_its_gradient() -> None:
    values, scale = torch.tensor([1.0]), torch.tensor(-0.1)
    rounded, _, scale_grad = gradients(fake_quantize, values, scale, -torch.ones(1), -4, 3, features=1)
    assert rounded.item() == pytest.approx(3 * SMALLEST_SCALE)
    assert scale_grad.item() == pytest.approx(-3 / math.sqrt(3))  # descent raises it


def test_gradients_can_be_differentiated_again() -> None:
    values = torch.tensor([0.6, -1.3, 9.0], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    rounded = fake_quantize(values, scale, -4, 3, features=1)
    (scale_grad,) = torch.autograd.grad(rounded.sum(), scale, create_graph=True)
    (again,) = torch.autograd.grad(scale_grad, values)
    # Inside the range the gradient is round(v/s) - v/s with the derivative -1/s in v; outside it is constant.
    torch.testing.assert_close(again, torch.tensor([-2.0, -2.0, 0.0]) / math.sqrt(3))


def test_the_first_scale_is_twice_the_mean_by_the_root_of_the_highest_level() -> None:
    weight = torch.tensor([[1.0, -3.0], [0.5, 0.5]])
    assert first_scale(weight, 4).item() == 2 * 1.25 / 2
    assert first_scale(weight, 4, channel_axis=1).tolist() == [[0.75, 1.75]]
    assert first_scale(torch.zeros(3), 1).item() == pytest.approx(SMALLEST_SCALE)


def test_integer_values_are_refused(refused: Any) -> None:
    with refused("values", got=torch.int64):
        fake_quantize(torch.tensor([1, 2]), torch.tensor(0.5), -4, 3)
