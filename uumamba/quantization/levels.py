"""Which whole numbers a bit width has, and the scale that training starts from."""

import math

from torch import Tensor

from uumamba.runtime.errors import UsageError

FEWEST_BITS, MOST_BITS = 2, 8
SMALLEST_SCALE = 1e-7
"""Below it a learned scale counts as this: the quotient by it stays finite, and it can grow again."""


def check_bits(bits: int, what: str) -> None:
    """Refuse a bit width outside 2 to 8.

    Args:
        bits: the width.
        what: whose it is, such as ``"weight_bits"``.

    Raises:
        UsageError: it is no such whole number.
    """
    if not isinstance(bits, int) or not FEWEST_BITS <= bits <= MOST_BITS:
        raise UsageError(
            f"{what} must be a whole number of bits from {FEWEST_BITS} to {MOST_BITS}, got {bits!r}; leave a layer in "
            "full precision with None."
        )


def level_range(bits: int, *, signed: bool = True) -> tuple[int, int]:
    r"""Lowest and highest level: :math:`-2^{b-1}` and :math:`2^{b-1} - 1`, or 0 and :math:`2^b - 1` without sign.

    Example:
        >>> level_range(3), level_range(3, signed=False)
        ((-4, 3), (0, 7))
    """
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def first_scale(values: Tensor, high: int, *, channel_axis: int | None = None) -> Tensor:
    r"""Where a learned scale starts: :math:`s_0 = 2\,\mathrm{mean}|v| / \sqrt{Q_p}`.

    Args:
        values: what is to be quantised.
        high: the highest level :math:`Q_p`.
        channel_axis: one scale for each index of this axis; one for all without it.

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
