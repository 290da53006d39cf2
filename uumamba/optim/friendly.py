"""Friendly sharpness-aware minimisation."""

import math
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

MEAN = "gradient_mean"


class FriendlySAM(SharpnessAware):
    r"""SAM that climbs along the gradient minus the mean of earlier ones.

    .. math:: d = g - \sigma m, \qquad m \leftarrow \lambda m + (1 - \lambda)\, g, \qquad
              \epsilon = \rho \frac{d}{\lVert d \rVert_2}

    with g the gradient at w, m its running mean and the norm over all perturbed parameters. In the first step m is g
    and the climb SAM's. Two passes per step and one copy of the perturbed parameters.

    Under a scaler m is kept in true units. A gradient that is not finite does not change it. With several closures
    and ``accumulation="micro"`` each of them counts in m. Ranks climb alike, along the averaged gradient. For other
    edge cases see :class:`SharpnessAware`.

    Args:
        params: parameters, named parameters or groups; a group may set ``rho`` or ``perturb=False``.
        base: any callable from parameters to an optimizer.
        rho: radius of the neighbourhood, for groups that set none.
        sigma: share of the running mean that is subtracted; with 0 it is SAM.
        lam: decay of the running mean.
        engine: options of every member, such as ``net`` and ``scaler``; see :class:`EngineOptions`.

    Raises:
        UsageError: ``rho`` or ``sigma`` is negative, or ``lam`` is not in [0, 1).

    Example:
        >>> from functools import partial
        >>> weight = torch.nn.Parameter(torch.tensor([2.0, 0.0]))
        >>> optimizer = FriendlySAM([weight], partial(torch.optim.SGD, lr=0.0), rho=1.0)
        >>> climbed = []
        >>> def closure(slope):
        ...     climbed.append(weight.tolist())
        ...     return weight @ torch.tensor(slope)
        >>> for slope in ([1.0, 0.0], [1.0, 3.0]):  # the second batch shares the first's slope
        ...     _ = optimizer.step(lambda slope=slope: closure(slope))
        >>> climbed[1], climbed[3]
        ([3.0, 0.0], [2.0, 1.0])

    References:
        Li et al., *Friendly Sharpness-Aware Minimization*, CVPR 2024, arXiv:2403.12350. Differs from the paper: as in
        the authors' code the mean of earlier steps is subtracted, before g enters it; with sigma 1 both directions are
        the same.
    """

    def __init__(
        self,
        params: Iterable[Any],
        base: Callable[..., Optimizer],
        *,
        rho: float = 0.05,
        sigma: float = 1.0,
        lam: float = 0.9,
        **engine: Unpack[EngineOptions],
    ) -> None:
        require(sigma >= 0, "sigma", got=sigma, expected="a number of at least 0")
        require(0 <= lam < 1, "lam", got=lam, expected="a number in [0, 1)")
        rule = Rule(climb=follow_new_part(sigma=sigma, lam=lam), shared=True)
        super().__init__(params, base, rule=rule, group_defaults={"rho": rho}, **engine)


def follow_new_part(*, sigma: float, lam: float) -> Climb:
    """Make the climb along the gradient minus its running mean."""

    def climb(slope: Slope) -> tuple[Sequence[Tensor], Tensor]:
        scale, direction = slope.scale(), list(slope.grads)
        known = [index for index, param in enumerate(slope.params) if MEAN in slope.memory.get(param, {})]
        means = [slope.memory[slope.params[index]][MEAN] for index in known]
        grads = [slope.grads[index] for index in known]
        if known:
            for index, new in zip(known, torch._foreach_sub(grads, means, alpha=sigma * scale), strict=True):
                direction[index] = new
        length = global_norm(direction)
        if math.isfinite(length.item()):
            if known:
                means = list(torch._foreach_mul(means, lam))  # new tensors: a step that is repeated starts from the old
                torch._foreach_add_(means, grads, alpha=(1 - lam) / scale)
                for index, mean in zip(known, means, strict=True):
                    slope.memory[slope.params[index]][MEAN] = mean
            for index in set(range(len(direction))) - set(known):
                slope.memory.setdefault(slope.params[index], {})[MEAN] = slope.grads[index] / scale
        return direction, length

    return climb
