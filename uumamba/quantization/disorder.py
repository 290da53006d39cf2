"""Sign changes of a gradient from step to step."""

from dataclasses import dataclass

import torch
from torch import Tensor


def gradient_disorder(gradients: Tensor) -> Tensor:
    r"""Return the share of consecutive gradients whose signs differ.

    .. math:: \delta = \frac{1}{K - 1} \sum_{t=2}^{K} 1[\mathrm{sgn}\, g_t \ne \mathrm{sgn}\, g_{t-1}]

    The result is 1 for alternating signs, 0 for a constant sign, and about 0.5 for noise. Zeros and NaN have no sign
    and are left out, also from the number of steps. With fewer than two signs the result is NaN.

    Args:
        gradients: ``(steps, *entries)``.

    Returns:
        ``(*entries)``.

    Example:
        >>> gradient_disorder(torch.tensor([[1.0, 2.0, 0.0], [-1.0, 3.0, 0.0], [0.0, 1.0, 5.0], [2.0, 4.0, 0.0]]))
        tensor([1., 0., nan])

    References:
        Jiang et al., *GAQAT: Gradient-Adaptive Quantization-Aware Training for Domain Generalization*, 2024,
        arXiv:2412.05551.
        Differs from the paper: gradients of 0 are left out; the paper does not define their sign.
    """
    flips = SignFlips(*gradients.new_zeros(3, *gradients.shape[1:]))
    for gradient in gradients:
        flips.count(gradient)
    return flips.disorder()


@dataclass(frozen=True)
class SignFlips:
    """Sign changes of gradients in a window, per entry, updated in place.

    Attributes:
        last: last nonzero sign; 0 before the first sign.
        flips: number of sign changes.
        pairs: number of compared pairs of signs.
    """

    last: Tensor
    flips: Tensor
    pairs: Tensor

    def count(self, gradient: Tensor) -> None:
        """Add the gradient of one step."""
        sign = gradient.sign().nan_to_num()
        both = (sign != 0) & (self.last != 0)
        self.flips.add_(both & (sign != self.last))
        self.pairs.add_(both)
        self.last.copy_(torch.where(sign == 0, self.last, sign))

    def disorder(self) -> Tensor:
        """Return flips divided by pairs; NaN without a pair."""
        return self.flips / self.pairs

    def clear(self) -> None:
        """Reset for a new window."""
        for counted in (self.last, self.flips, self.pairs):
            counted.zero_()
