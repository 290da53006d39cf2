"""Average of the weights of a run's later steps."""

import torch
from torch import Tensor, nn

from uumamba.runtime.errors import require
from uumamba.runtime.network import bare_network
from uumamba.runtime.options import PositiveInt, check_options


class WeightAveraging:
    r"""Running mean of the weights from one step on, every few steps.

    .. math:: \bar w = \mathrm{mean}\,\{w_t : t = s,\ s + k,\ s + 2k, \dots\}

    with s ``start`` and k ``every``. The mean is kept in at least float32 and covers the trainable parameters. Buffers
    are not averaged: the network keeps those of its last step, and :func:`unlearn` computes running statistics of batch
    norms in training mode again.

    Args:
        start: first averaged step, from 1.
        every: steps between averaged weights.

    Attributes:
        count: number of averaged weights.

    Raises:
        UsageError: an option is below 1.

    Example:
        >>> net, averaging = nn.Linear(1, 1, bias=False), WeightAveraging(start=2, every=2)
        >>> for step in range(1, 5):
        ...     _ = nn.init.constant_(net.weight, step)
        ...     averaging.after_step(net, step)
        >>> averaging.load_into(net)
        >>> net.weight.item(), averaging.count  # the mean of 2 and 4
        (3.0, 2)

    References:
        Izmailov et al., *Averaging Weights Leads to Wider Optima and Better Generalization*, UAI 2018,
        arXiv:1803.05407; for unlearning Fan et al., ICML 2025, arXiv:2502.05374 (start 100, every 5).
        Differs from the paper: a constant learning rate is left to the caller.
    """

    @check_options
    def __init__(self, *, start: PositiveInt = 100, every: PositiveInt = 5) -> None:
        self.start, self.every = start, every
        self.count = 0
        self._means: dict[str, Tensor] = {}

    @torch.no_grad()
    def after_step(self, net: nn.Module, step: int) -> None:
        """Add the weights, if the step is one of those averaged."""
        if step < self.start or (step - self.start) % self.every:
            return
        self.count += 1
        for name, param in _trainable(net).items():
            weight = param.to(torch.promote_types(param.dtype, torch.float32))
            self._means.setdefault(name, torch.zeros_like(weight)).lerp_(weight, 1 / self.count)

    @torch.no_grad()
    def load_into(self, net: nn.Module) -> None:
        """Replace the weights by their mean.

        Raises:
            UsageError: no weights were averaged.
        """
        require(
            self.count,
            "averaging",
            got="no averaged weights",
            expected=f"at least {self.start} steps",
            fix="train longer, or lower start",
        )
        for name, param in _trainable(net).items():
            param.copy_(self._means[name])


def _trainable(net: nn.Module) -> dict[str, nn.Parameter]:
    return {name: param for name, param in bare_network(net).named_parameters() if param.requires_grad}
