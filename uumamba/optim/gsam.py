"""Sharpness-aware minimisation that also minimises the surrogate gap."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor

from uumamba.optim.engine import SharpnessAware
from uumamba.optim.groups import BaseFactory, EngineOptions, Params
from uumamba.optim.rules import Factor, FirstPass, Rule, scale_to_radius
from uumamba.optim.sam import follow_gradient
from uumamba.optim.tensors import projection_factor
from uumamba.runtime.errors import require
from uumamba.runtime.options import NonNegative, Positive, check_options


class GSAM(SharpnessAware):
    r"""SAM that also minimises the gap between perturbed and original loss.

    .. math:: g_\perp = g - \frac{\langle g, g_p \rangle}{\lVert g_p \rVert_2^2}\, g_p, \qquad
              w \leftarrow \mathrm{base}(w,\ g_p - \alpha g_\perp)

    with g the gradient at w, :math:`g_p` the gradient at :math:`w + \epsilon` and SAM's :math:`\epsilon`. Subtracting
    the part of g that is perpendicular to :math:`g_p` raises the original loss and leaves the perturbed loss unchanged
    to first order. Products and norms are over all perturbed parameters; the others take :math:`g_p`.

    The radius is ``rho``, or follows each group's learning rate:

    .. math:: \rho_t = \rho_\min + (\rho - \rho_\min)\, \frac{\mathrm{lr} - \mathrm{lr}_\min}
              {\mathrm{lr}_\max - \mathrm{lr}_\min}

    with the fraction clamped to [0, 1], as a warm-up may start below ``lr_min``. Two passes per step. With ``ascent``
    g is the ascent loss's gradient in both formulas. For edge cases see :class:`SharpnessAware`. The adaptive form of
    the authors' code is a rule, in one line in the example.

    Args:
        params: parameters, named parameters or groups; a group may set ``rho`` or ``perturb=False``.
        base: any callable from parameters to an optimizer.
        rho: radius of the neighbourhood; with ``rho_min`` the largest radius.
        alpha: share of the perpendicular part; 0 gives SAM. The authors' class requires it; their example has 0.4.
        rho_min: radius at ``lr_min``; None: a constant radius.
        lr_max: learning rate at which the radius is ``rho``.
        lr_min: learning rate at which the radius is ``rho_min``.
        engine: options of every optimizer of uumamba.optim, such as ``net`` and ``scaler``; see :class:`EngineOptions`.

    Raises:
        UsageError: ``rho`` or ``alpha`` is negative, ``rho_min`` is not between 0 and ``rho``,
            only one of ``rho_min`` and ``lr_max`` is given, or ``lr_max`` is not above ``lr_min``.

    Example:
        >>> from functools import partial
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = GSAM([weight], partial(torch.optim.SGD, lr=0.25), rho=5.0, alpha=0.4)
        >>> optimizer.step(lambda: weight.prod())  # gradients (4, 3), and (7, 7) at (7, 7); perpendicular (0.5, -0.5)
        tensor(12.)
        >>> weight.data
        tensor([1.3000, 2.2000])
        >>> from uumamba.optim.asam import follow_scaled_gradient
        >>> direction = partial(follow_scaled_gradient, eta=0.0, normalize_bias=True)  # of ASAM
        >>> rule = Rule(direction=direction, mix=partial(subtract_perpendicular, alpha=0.4))
        >>> base = partial(torch.optim.SGD, lr=0.1)
        >>> adaptive = SharpnessAware([weight], base, rule=rule, group_defaults={"rho": 2.0})

    References:
        Zhuang et al., *Surrogate Gap Minimization Improves Sharpness-Aware Training*, ICLR 2022, arXiv:2203.08065.
        Differs from the paper: weight decay acts through the base at w and so is not part of the gradient.
    """

    @check_options
    def __init__(
        self,
        params: Params,
        base: BaseFactory,
        *,
        rho: NonNegative = 0.05,
        alpha: NonNegative = 0.4,
        rho_min: NonNegative | None = None,
        lr_max: Positive | None = None,
        lr_min: NonNegative = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        require(
            (rho_min is None) == (lr_max is None),
            "rho_min",
            got=rho_min,
            expected="a number with lr_max, or None without lr_max",
        )
        factor: Factor = scale_to_radius
        if rho_min is not None and lr_max is not None:
            require(rho_min <= rho, "rho_min", got=rho_min, expected=f"a number from 0 to rho {rho}")
            require(lr_max > lr_min, "lr_max", got=lr_max, expected=f"a number above lr_min {lr_min}")
            factor = partial(schedule_radius, rho_min=rho_min, lr_max=lr_max, lr_min=lr_min)
        rule = Rule(direction=follow_gradient, factor=factor, mix=partial(subtract_perpendicular, alpha=alpha))
        super().__init__(params, base, rule=rule, group_defaults={"rho": rho}, **engine)


def schedule_radius(group: Mapping[str, Any], length: float, *, rho_min: float, lr_max: float, lr_min: float) -> float:
    """Return the factor whose radius falls to ``rho_min`` with the learning rate.

    Example:
        >>> schedule_radius({"rho": 0.75, "lr": 0.5}, 1.0, rho_min=0.25, lr_max=1.0, lr_min=0.0)
        0.5
    """
    fraction = min(max((float(group["lr"]) - lr_min) / (lr_max - lr_min), 0.0), 1.0)
    return scale_to_radius({"rho": rho_min + (group["rho"] - rho_min) * fraction}, length)


def subtract_perpendicular(first: FirstPass, second: Sequence[Tensor], *, alpha: float) -> Sequence[Tensor]:
    r"""Subtract the perpendicular part of the gradient.

    The mix :math:`g_p - \alpha g_\perp` is computed as :math:`(1 + \alpha c)\, g_p - \alpha g`.
    """
    if second:
        share = projection_factor(first.grads, onto=second)
        torch._foreach_mul_(list(second), 1 + alpha * share)
        torch._foreach_add_(list(second), list(first.grads), alpha=-alpha)
    return second
