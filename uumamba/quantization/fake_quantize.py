"""Rounding to multiples of a learned scale, with gradients for the values and for the scale."""

import math
from typing import Any

import torch
from torch import Tensor

from uumamba.quantization.levels import SMALLEST_SCALE


def fake_quantize(values: Tensor, scale: Tensor, low: int, high: int, *, features: int | None = None) -> Tensor:
    r"""Values rounded to whole multiples of a scale that learns.

    .. math:: \hat v = s \cdot \mathrm{round}\big(\mathrm{clamp}(v / s,\ Q_n,\ Q_p)\big)

    Half-way cases go to the even level. Backward, with g the incoming gradient and N ``features``:

    .. math:: \frac{\partial L}{\partial v} = g\, 1[Q_n \le v/s \le Q_p], \qquad
              \frac{\partial L}{\partial s} = \frac{1}{\sqrt{N Q_p}} \sum g \cdot
              \begin{cases} \mathrm{round}(v/s) - v/s & Q_n \le v/s \le Q_p \\ Q_n \text{ or } Q_p & \text{outside}
              \end{cases}

    Low-precision values are divided in the scale's own precision. A scale below 1e-7, so a negative one too, counts as
    1e-7 and keeps its gradient. NaN stays NaN; an infinite value becomes the outermost level.

    Args:
        values: any shape.
        scale: a scalar, or a shape that broadcasts to that of ``values``.
        low: the lowest level, Qn.
        high: the highest level, Qp.
        features: how many values of one sample share a scale; all of them by default, as for weights.

    Returns:
        The shape and type of ``values``.

    Raises:
        TypeError: the values are whole numbers, which could not hold multiples of the scale.

    Example:
        >>> scale = torch.tensor(0.5, requires_grad=True)
        >>> fake_quantize(torch.tensor([0.6, -0.2, 9.0]), scale, -4, 3, features=1).sum().backward()
        >>> fake_quantize(torch.tensor([0.6, -0.2, 9.0]), scale, -4, 3).tolist()
        [0.5, -0.0, 1.5]
        >>> round(scale.grad.item() * 3**0.5, 4)  # (1 - 1.2) + (0 + 0.4) + 3
        3.2

    References:
        Esser et al., *Learned Step Size Quantization*, ICLR 2020, arXiv:1902.08153.
        Differs from the paper: a value exactly at the lowest or highest level counts as inside the range.
    """
    if not values.is_floating_point():
        raise TypeError(f"values must be floating point to be rounded to multiples of a scale, got {values.dtype}")
    shared = values.numel() // max(scale.numel(), 1) if features is None else features
    factor = 1 / math.sqrt(max(shared, 1) * high)
    quantized: Tensor = _FakeQuantize.apply(values, scale, low, high, factor)  # type: ignore[no-untyped-call]  # torch's
    return quantized


class _FakeQuantize(torch.autograd.Function):
    """One node, so that forward values are exact multiples; straight-through terms added and subtracted are not."""

    @staticmethod
    def forward(values: Tensor, scale: Tensor, low: int, high: int, factor: float) -> Tensor:
        used = scale.clamp(min=SMALLEST_SCALE)
        return ((values.to(scale.dtype) / used).clamp(low, high).round() * used).to(values.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, int, float], output: Tensor) -> None:
        values, scale, ctx.low, ctx.high, ctx.factor = inputs
        ctx.save_for_backward(values, scale)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        values, scale = ctx.saved_tensors
        ratio = values.to(scale.dtype) / scale.clamp(min=SMALLEST_SCALE)
        inside = (ratio >= ctx.low) & (ratio <= ctx.high)
        (gradient,) = incoming
        of_values = gradient * inside if ctx.needs_input_grad[0] else None
        of_scale = None
        if ctx.needs_input_grad[1]:
            level = ratio.clamp(ctx.low, ctx.high).round()
            slope = torch.where(inside, level - ratio, level)
            of_scale = (gradient.to(scale.dtype) * slope).sum_to_size(scale.shape) * ctx.factor
        return of_values, of_scale, None, None, None
