"""Second passes only in steps with a large gradient."""

import math
from dataclasses import dataclass

from uumamba.optim.rules import Slope
from uumamba.optim.tensors import global_norm
from uumamba.runtime.errors import require

SEEN, MEAN, VARIANCE = "trigger_steps", "trigger_mean", "trigger_variance"


@dataclass(frozen=True, kw_only=True)
class AdaptiveTrigger:
    r"""Trigger of a climb by a squared gradient norm above recent ones.

    .. math:: \mu \leftarrow \delta \mu + (1 - \delta) \lVert g \rVert_2^2, \qquad
              s^2 \leftarrow \delta s^2 + (1 - \delta) (\lVert g \rVert_2^2 - \mu)^2, \qquad
              \lVert g \rVert_2^2 \ge \mu + c_t s

    with :math:`\delta` the ``decay``, both starting at 0, and :math:`c_t` going in a line from ``start`` to ``end``:
    with 1 and -1 few steps climb at first and most towards the end. For :class:`LookSAM`'s ``trigger``,
    or any rule's ``due``; the rule must be ``shared``, so that ranks decide alike.

    The norm is over perturbed parameters, in true units under a scaler. A gradient that is not finite neither climbs
    nor counts. The first step climbs, by the formula, for any ``start`` up to 3 and the default ``decay``. With several
    closures and ``accumulation="micro"`` each of them counts as a step.

    Args:
        total_steps: steps of the whole training; :math:`c_t` stays at ``end`` after them.
        start: :math:`c_0`.
        end: :math:`c_t` after the last step.
        decay: of the mean and the variance.

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
        ...     rule=Rule(climb=follow_gradient, due=AdaptiveTrigger(total_steps=100), shared=True),
        ...     group_defaults={"rho": 0.05},
        ... )
        >>> ae_sam.step(lambda: (weight**2).sum())
        tensor(2.)

    References:
        Jiang et al., *An Adaptive Policy to Employ Sharpness-Aware Minimization*, ICLR 2023, arXiv:2304.14647.
        Differs from the paper: none known.
    """

    total_steps: int
    start: float = 1.0
    end: float = -1.0
    decay: float = 0.9

    def __post_init__(self) -> None:
        require(self.total_steps > 0, "total_steps", got=self.total_steps, expected="a positive number")
        require(0 <= self.decay < 1, "decay", got=self.decay, expected="a number in [0, 1)")

    def __call__(self, slope: Slope) -> bool:
        """Count this step; True where it climbs."""
        norm, numbers = global_norm(slope.grads).item() / slope.scale(), slope.numbers
        steepness = norm * norm
        seen = numbers.get(SEEN, 0)
        mean = self.decay * numbers.get(MEAN, 0.0) + (1 - self.decay) * steepness
        off = steepness - mean
        variance = self.decay * numbers.get(VARIANCE, 0.0) + (1 - self.decay) * off * off
        if not math.isfinite(variance):
            return False
        numbers.update({SEEN: seen + 1, MEAN: mean, VARIANCE: variance})
        done = min(seen / self.total_steps, 1.0)
        threshold = self.start + (self.end - self.start) * done
        return steepness >= mean + threshold * math.sqrt(variance)
