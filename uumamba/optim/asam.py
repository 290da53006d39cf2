"""Adaptive sharpness-aware minimisation."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from uumamba.optim.engine import SharpnessAware
from uumamba.optim.groups import EngineOptions
from uumamba.optim.rules import Climb, Rule, Slope
from uumamba.optim.tensors import global_norm
from uumamba.runtime.errors import require


class ASAM(SharpnessAware):
    r"""Adaptive SAM, whose neighbourhood scales with the weights.

    .. math:: \epsilon = \rho \frac{T_w^2\, g}{\lVert T_w g \rVert_2}, \qquad T_w = |w| + \eta

    elementwise, with g the gradient at w; so rescaling a network changes nothing, and :math:`\lVert T_w^{-1} \epsilon
    \rVert_2 = \rho`. Unless ``normalize_bias``, :math:`T_w` is 1 for parameters with at most one axis: biases, and
    scales and shifts of norms. The best ``rho`` depends on it: 0.5 is tuned without, 2.0 (with ``eta=0``) with it. Two
    passes per step; for edge cases see :class:`SharpnessAware`.

    Args:
        params: parameters, named parameters or groups; a group may set ``rho`` or ``perturb=False``.
        base: any callable from parameters to an optimizer.
        rho: radius of the neighbourhood in the scaled measure, for groups that set none.
        eta: added to :math:`|w|`, so that weights of 0 can move.
        normalize_bias: scale parameters with at most one axis as well.
        engine: options of every member, such as ``net`` and ``scaler``; see :class:`EngineOptions`.

    Raises:
        UsageError: ``rho`` or ``eta`` is negative, or ``rho`` is not finite.

    Example:
        >>> from functools import partial
        >>> weight = torch.nn.Parameter(torch.tensor([[2.0]]))
        >>> optimizer = ASAM([weight], partial(torch.optim.SGD, lr=0.25), rho=0.5, eta=0.0)
        >>> optimizer.step(lambda: (weight**2).sum())  # climbs by 0.5 * 2, as SAM with rho 1 would
        tensor(4.)
        >>> weight.data
        tensor([[0.5000]])

    References:
        Kwon et al., *ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks*,
        ICML 2021, arXiv:2102.11600.
        Differs from the paper: its code scales every parameter named "weight", those of norms included.
    """

    def __init__(
        self,
        params: Iterable[Any],
        base: Callable[..., Optimizer],
        *,
        rho: float = 0.5,
        eta: float = 0.01,
        normalize_bias: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        require(eta >= 0, "eta", got=eta, expected="a number of at least 0")
        climb = follow_scaled_gradient(eta=eta, normalize_bias=normalize_bias)
        super().__init__(params, base, rule=Rule(climb=climb), group_defaults={"rho": rho}, **engine)


def follow_scaled_gradient(*, eta: float, normalize_bias: bool) -> Climb:
    r"""Make the climb along :math:`T_w^2 g` with length :math:`\lVert T_w g \rVert_2`."""

    def climb(slope: Slope) -> tuple[Sequence[Tensor], Tensor]:
        scaled, direction = list(slope.grads), list(slope.grads)
        chosen = [index for index, param in enumerate(slope.params) if normalize_bias or param.ndim > 1]
        if chosen:
            scale = torch._foreach_abs([slope.params[index] for index in chosen])
            torch._foreach_add_(scale, eta)
            once = torch._foreach_mul(scale, [slope.grads[index] for index in chosen])
            torch._foreach_mul_(scale, once)
            for index, first, second in zip(chosen, once, scale, strict=True):
                scaled[index], direction[index] = first, second
        return direction, global_norm(scaled)

    return climb
