"""Loss terms with weights learned from their uncertainty."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.losses.summed import CompoundLoss, Term
from uumamba.runtime.errors import require

SMALLEST_TERM = -1e-3
"""Term that is 0 but for rounding, also of half-precision logits."""


class UncertaintyWeightedLoss(CompoundLoss):
    r"""Sum of losses with learned weights.

    .. math:: L = \sum_i \frac{e^{-\tau_i}}{2} L_i + \mathrm{softplus}(\tau_i)
                = \sum_i \frac{1}{2\sigma_i^2} L_i + \log(1 + \sigma_i^2), \qquad \tau_i = \log \sigma_i^2

    Each :math:`\tau_i` is a parameter of this module with the initial value 0. Give ``loss.parameters()`` to the
    optimizer, in a group without weight decay and with ``perturb=False``. The sum has the lower bound 0 if every term
    is at least 0, so a region term must be 1 - Dice, not -Dice. For a constant term L the variance converges to
    :math:`\sigma^2 = (L + \sqrt{L^2 + 8L}) / 4`.

    Peak memory for large logits of 24 classes: Dice, cross entropy and focal loss together need 2.1 times the bytes of
    the logits in addition to them, including their gradient (5.0 times with torch's operators).

    After a call ``last_terms`` contains the detached value of each term, on the device of the loss. Give
    ``ignore_label`` to each term; a term without it raises for an ignored label that is no class.

    Args:
        losses: named losses, modules or functions, each called as ``loss(logits, label)`` and never negative. Logits
            and label may be anything that the losses take, such as the outputs of two heads and two labels.

    Raises:
        UsageError: there are no losses, or they have no names; or, on a CPU, a term is negative.

    Example:
        >>> from uumamba.losses import FocalLoss, SoftDiceLoss
        >>> loss = UncertaintyWeightedLoss({"region": SoftDiceLoss(), "pixel": FocalLoss(gamma=2.0)})
        >>> loss(torch.zeros(2, 4, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.long)).shape
        torch.Size([])
        >>> loss.weights()
        {'region': 0.5, 'pixel': 0.5}

    References:
        Liebel & Körner, *Auxiliary Tasks in Multi-task Learning*, 2018, arXiv:1805.06334 (this regulariser).
        Kendall, Gal & Cipolla, *Multi-Task Learning Using Uncertainty*, CVPR 2018, arXiv:1705.07115.
        Differs from the paper: the parameter is the log variance, so the variance stays positive.
    """

    def __init__(self, losses: Mapping[str, Term]) -> None:
        super().__init__(losses)
        self.log_variances = nn.Parameter(torch.zeros(len(losses)))

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of logits ``(batch, classes, *spatial)`` against a label ``(batch, 1, *spatial)``."""
        values = self.compute_terms(logits, label)
        _check_sign(self.losses, values)
        weighted = 0.5 * torch.exp(-self.log_variances) * values
        return (weighted + F.softplus(self.log_variances)).sum()

    def weights(self) -> dict[str, float]:
        r"""Return the weight :math:`e^{-\tau_i} / 2` of each term.

        On an accelerator the call waits for the device.
        """
        values = (0.5 * torch.exp(-self.log_variances.detach())).tolist()
        return dict(zip(self.losses, values, strict=True))


def _check_sign(names: Iterable[str], values: Tensor) -> None:
    """Raise for a negative term, whose weight would grow without bound.

    An accelerator is not waited for.
    """
    is_traced = torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(values)
    if is_traced or values.device.type != "cpu":
        return
    for name, value in zip(names, values.tolist(), strict=True):
        require(
            not value < SMALLEST_TERM,  # a term that is NaN goes on, for the optimizer to skip the step
            f"losses: {name}",
            got=f"a value of {value:.4g}",
            expected="a loss of at least 0",
            fix="write 1 - Dice in place of -Dice",
        )
