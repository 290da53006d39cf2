"""Levels of a bit width, and the initial scale."""

import math

from torch import Tensor

from uumamba.runtime.errors import require

FEWEST_BITS, MOST_BITS = 2, 8
SMALLEST_SCALE = 1e-7
"""Lower bound of a learned scale: quotients stay finite, and the scale can grow again."""


def check_bits(bits: int, key: str) -> None:
    """Raise if a bit width is not a whole number from 2 to 8.

    Args:
        bits: the width.
        key: name of the option, such as ``"weight_bits"``.

    Raises:
        UsageError: the width is out of range.
    """
    require(
        isinstance(bits, int) and FEWEST_BITS <= bits <= MOST_BITS,
        key,
        got=bits,
        expected=f"a whole number from {FEWEST_BITS} to {MOST_BITS}, or None for full precision",
    )


def level_range(bits: int, *, signed: bool = True) -> tuple[int, int]:
    r"""Return lowest and highest level: :math:`-2^{b-1}, 2^{b-1} - 1`, or unsigned :math:`0, 2^b - 1`.

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
        channel_axis: one scale for each index of this axis; one scale for all if None.

    Returns:
        A scalar, or as many axes as ``values`` with 1 in all but ``channel_axis``. Zeros give
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
