"""Fake quantization: rounding to multiples of a learned scale, with gradients."""

import math
from typing import Any, cast

import torch
from torch import Tensor

from uumamba.quantization.levels import SMALLEST_SCALE
from uumamba.runtime.errors import require


def fake_quantize(values: Tensor, scale: Tensor, low: int, high: int, *, features: int | None = None) -> Tensor:
    r"""Round values to integer multiples of a learned scale.

    .. math:: \hat v = s \cdot \mathrm{round}\big(\mathrm{clamp}(v / s,\ Q_n,\ Q_p)\big)

    Ties round to the even level. Backward, with g the incoming gradient and N ``features``:

    .. math:: \frac{\partial L}{\partial v} = g\, 1[Q_n \le v/s \le Q_p], \qquad
              \frac{\partial L}{\partial s} = \frac{1}{\sqrt{N Q_p}} \sum g \cdot
              \begin{cases} \mathrm{round}(v/s) - v/s & Q_n \le v/s \le Q_p \\ Q_n \text{ or } Q_p & \text{outside}
              \end{cases}

    Low-precision values are divided in the precision of the scale. A scale below 1e-7, also a negative scale, is
    replaced by 1e-7 and keeps its gradient. NaN stays NaN; an infinite value becomes the lowest or highest level.

    Args:
        values: any shape.
        scale: a scalar, or a shape that broadcasts to that of ``values``.
        low: lowest level, Qn.
        high: highest level, Qp.
        features: number of values per sample with a common scale; None for all values, as for weights.

    Returns:
        Tensor with the shape and type of ``values``.

    Raises:
        UsageError: the values are not floating point.

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
    require(values.is_floating_point(), "values", got=values.dtype, expected="a floating-point type")
    shared = values.numel() // max(scale.numel(), 1) if features is None else features
    factor = 1 / math.sqrt(max(shared, 1) * high)
    return cast(Tensor, _FakeQuantize.apply(values, scale, low, high, factor))  # type: ignore[no-untyped-call]  # torch's


class _FakeQuantize(torch.autograd.Function):
    """Autograd function of the rounding, with exact multiples as output.

    The usual straight-through terms would add rounding errors to the output.
    """

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
        values_grad = gradient * inside if ctx.needs_input_grad[0] else None
        scale_grad = None
        if ctx.needs_input_grad[1]:
            level = ratio.clamp(ctx.low, ctx.high).round()
            derivative = torch.where(inside, level - ratio, level)
            scale_grad = (gradient.to(scale.dtype) * derivative).sum_to_size(scale.shape) * ctx.factor
        return values_grad, scale_grad, None, None, None
