"""Levels of a bit width, and initial scales."""

import math

from torch import Tensor

SMALLEST_SCALE = 1e-7
"""Lower bound of a learned scale: quotients stay finite, and the scale can grow again."""


def level_range(bits: int, *, signed: bool = True) -> tuple[int, int]:
    r"""Return the lowest and highest level of a bit width.

    Signed levels are :math:`-2^{b-1}` to :math:`2^{b-1} - 1`, unsigned levels 0 to :math:`2^b - 1`.

    Example:
        >>> level_range(3), level_range(3, signed=False)
        ((-4, 3), (0, 7))
    """
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def first_scale(values: Tensor, high: int, *, channel_axis: int | None = None) -> Tensor:
    r"""Return the initial scale, :math:`s_0 = 2\,\mathrm{mean}|v| / \sqrt{Q_p}`.

    Args:
        values: tensor to quantize.
        high: the highest level :math:`Q_p`.
        channel_axis: axis with one scale per index; None for a single scale.

    Returns:
        A scalar, or a tensor of the shape of ``values`` with 1 in all axes but ``channel_axis``. Zeros give
        :data:`SMALLEST_SCALE`.

    Example:
        >>> import torch
        >>> first_scale(torch.tensor([[1.0, -3.0], [0.5, 0.5]]), 4, channel_axis=0).flatten()
        tensor([2.0000, 0.5000])
    """
    if channel_axis is None:
        mean = values.abs().mean()
    else:
        mean = values.abs().mean([axis for axis in range(values.ndim) if axis != channel_axis], keepdim=True)
    return (2 * mean / math.sqrt(high)).clamp(min=SMALLEST_SCALE)
