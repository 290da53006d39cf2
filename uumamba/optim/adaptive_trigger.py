"""Second passes only in steps with a large gradient."""

import math
from dataclasses import dataclass

from uumamba.optim.rules import FirstPass
from uumamba.optim.tensors import global_norm
from uumamba.runtime.options import BelowOne, PositiveInt, check_options

SEEN, MEAN, VARIANCE = "trigger_steps", "trigger_mean", "trigger_variance"


@check_options
@dataclass(frozen=True, kw_only=True)
class AdaptiveTrigger:
    r"""Trigger of a second pass by a large gradient norm.

    .. math:: \mu \leftarrow \delta \mu + (1 - \delta) \lVert g \rVert_2^2, \qquad
              s^2 \leftarrow \delta s^2 + (1 - \delta) (\lVert g \rVert_2^2 - \mu)^2, \qquad
              \lVert g \rVert_2^2 \ge \mu + c_t s

    with :math:`\delta` the ``decay``, :math:`\mu` and s starting at 0, and :math:`c_t` linear from ``start`` to
    ``end``: with 1 and -1 few steps have a second pass at first, and most steps towards the end. For :class:`LookSAM`'s
    ``trigger``, or any rule's ``is_due``; the rule must set ``is_shared``, so that all ranks decide the same.

    The norm is over perturbed parameters, in true units under a scaler. A gradient that is not finite does not fire
    the trigger and does not count. The first step fires, by the formula, for any ``start`` up to 3 and the default
    ``decay``. With several closures and ``accumulation="micro"`` each closure counts as a step.

    Args:
        total_steps: number of training steps; :math:`c_t` stays at ``end`` afterwards.
        start: threshold :math:`c_0` of the first step, in standard deviations above the mean.
        end: threshold :math:`c_t` after the last step.
        decay: decay of the mean and the variance.

    Raises:
        UsageError: ``total_steps`` is not positive, or ``decay`` is not in [0, 1).

    Example:
        >>> from functools import partial
        >>> import torch
        >>> from uumamba.optim import Rule, SharpnessAware
        >>> from uumamba.optim.sam import follow_gradient
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> ae_sam = SharpnessAware(
        ...     [weight],
        ...     partial(torch.optim.SGD, lr=0.1),
        ...     rule=Rule(direction=follow_gradient, is_due=AdaptiveTrigger(total_steps=100), is_shared=True),
        ...     group_defaults={"rho": 0.05},
        ... )
        >>> ae_sam.step(lambda: (weight**2).sum())
        tensor(2.)

    References:
        Jiang et al., *An Adaptive Policy to Employ Sharpness-Aware Minimization*, ICLR 2023, arXiv:2304.14647.
        Differs from the paper: none known.
    """

    total_steps: PositiveInt
    start: float = 1.0
    end: float = -1.0
    decay: BelowOne = 0.9

    def __call__(self, first: FirstPass) -> bool:
        """Count this step and return whether it has a second pass."""
        norm, numbers = global_norm(first.grads).item() / first.scale(), first.numbers
        squared = norm * norm
        seen = numbers.get(SEEN, 0)
        mean = self.decay * numbers.get(MEAN, 0.0) + (1 - self.decay) * squared
        off = squared - mean
        variance = self.decay * numbers.get(VARIANCE, 0.0) + (1 - self.decay) * off * off
        if not math.isfinite(variance):
            return False
        numbers.update({SEEN: seen + 1, MEAN: mean, VARIANCE: variance})
        done = min(seen / self.total_steps, 1.0)
        threshold = self.start + (self.end - self.start) * done
        return squared >= mean + threshold * math.sqrt(variance)
