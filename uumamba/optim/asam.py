"""Adaptive sharpness-aware minimisation."""

from collections.abc import Sequence
from functools import partial
from typing import Unpack

import torch
from torch import Tensor

from uumamba.optim.engine import SharpnessAware
from uumamba.optim.groups import BaseFactory, EngineOptions, Params
from uumamba.optim.rules import FirstPass, Rule
from uumamba.optim.tensors import global_norm
from uumamba.runtime.options import NonNegative, check_options


class ASAM(SharpnessAware):
    r"""Adaptive SAM, whose neighbourhood scales with the weights.

    .. math:: \epsilon = \rho \frac{T_w^2\, g}{\lVert T_w g \rVert_2}, \qquad T_w = |w| + \eta

    elementwise, with g the gradient at w. Rescaling a network changes nothing, and :math:`\lVert T_w^{-1} \epsilon
    \rVert_2 = \rho`. Unless ``normalize_bias``, :math:`T_w` is 1 for parameters with at most one axis: biases, and
    scales and shifts of norms. The best ``rho`` depends on ``normalize_bias``: 0.5 is tuned without, 2.0 (and
    ``eta=0``) with it. Two passes per step; for edge cases see :class:`SharpnessAware`.

    Args:
        params: parameters, named parameters or groups; a group may set ``rho`` or ``perturb=False``.
        base: any callable from parameters to an optimizer.
        rho: radius of the neighbourhood in the scaled measure.
        eta: added to :math:`|w|`, so that weights of 0 can move.
        normalize_bias: scale parameters with at most one axis as well.
        engine: options of every optimizer of uumamba.optim, such as ``net`` and ``scaler``; see :class:`EngineOptions`.

    Raises:
        UsageError: ``rho`` or ``eta`` is negative, or ``rho`` is not finite.

    Example:
        >>> from functools import partial
        >>> weight = torch.nn.Parameter(torch.tensor([[2.0]]))
        >>> optimizer = ASAM([weight], partial(torch.optim.SGD, lr=0.25), rho=0.5, eta=0.0)
        >>> optimizer.step(lambda: (weight**2).sum())  # perturbs by 0.5 * 2, as SAM with rho 1
        tensor(4.)
        >>> weight.data
        tensor([[0.5000]])

    References:
        Kwon et al., *ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks*,
        ICML 2021, arXiv:2102.11600.
        Differs from the paper: its code scales every parameter named "weight", also in norms.
    """

    @check_options
    def __init__(
        self,
        params: Params,
        base: BaseFactory,
        *,
        rho: NonNegative = 0.5,
        eta: NonNegative = 0.01,
        normalize_bias: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        direction = partial(follow_scaled_gradient, eta=eta, normalize_bias=normalize_bias)
        super().__init__(params, base, rule=Rule(direction=direction), group_defaults={"rho": rho}, **engine)


def follow_scaled_gradient(first: FirstPass, *, eta: float, normalize_bias: bool) -> tuple[Sequence[Tensor], Tensor]:
    r"""Return the direction :math:`T_w^2 g` with its length :math:`\lVert T_w g \rVert_2`."""
    scaled, direction = list(first.grads), list(first.grads)
    chosen = [index for index, param in enumerate(first.params) if normalize_bias or param.ndim > 1]
    if chosen:
        scale = torch._foreach_abs([first.params[index] for index in chosen])
        torch._foreach_add_(scale, eta)
        once = torch._foreach_mul(scale, [first.grads[index] for index in chosen])
        torch._foreach_mul_(scale, once)
        for index, one, two in zip(chosen, once, scale, strict=True):
            scaled[index], direction[index] = one, two
    return direction, global_norm(scaled)
