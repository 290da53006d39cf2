"""Friendly sharpness-aware minimisation."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Unpack

import torch
from torch import Tensor

from uumamba.optim.engine import SharpnessAware
from uumamba.optim.groups import BaseFactory, EngineOptions, Params
from uumamba.optim.rules import FirstPass, Rule
from uumamba.optim.tensors import global_norm
from uumamba.runtime.options import BelowOne, NonNegative, check_options

MEAN = "gradient_mean"


class FriendlySAM(SharpnessAware):
    r"""SAM along the gradient minus the running mean of earlier gradients.

    .. math:: d = g - \sigma m, \qquad m \leftarrow \lambda m + (1 - \lambda)\, g, \qquad
              \epsilon = \rho \frac{d}{\lVert d \rVert_2}

    with g the gradient at w, m its running mean and the norm over all perturbed parameters. In the first step m is g
    and the perturbation SAM's. Two passes per step. The optimizer keeps one copy of the perturbed parameters, besides
    the backup of the weights.

    Under a scaler m is kept in true units. A gradient that is not finite does not change it. With several closures
    and ``accumulation="micro"`` each closure counts in m. All ranks perturb along the averaged gradient. For other edge
    cases see :class:`SharpnessAware`.

    Args:
        params: parameters, named parameters or groups; a group may set ``rho`` or ``perturb=False``.
        base: any callable from parameters to an optimizer.
        rho: radius of the neighbourhood.
        sigma: share of the running mean to subtract; 0 gives SAM.
        lam: decay of the running mean.
        engine: options of every optimizer of uumamba.optim, such as ``net`` and ``scaler``; see :class:`EngineOptions`.

    Raises:
        UsageError: ``rho`` or ``sigma`` is negative, or ``lam`` is not in [0, 1).

    Example:
        >>> from functools import partial
        >>> weight = torch.nn.Parameter(torch.tensor([2.0, 0.0]))
        >>> optimizer = FriendlySAM([weight], partial(torch.optim.SGD, lr=0.0), rho=1.0)
        >>> weights = []
        >>> def closure(gradient):
        ...     weights.append(weight.tolist())
        ...     return weight @ torch.tensor(gradient)
        >>> for gradient in ([1.0, 0.0], [1.0, 3.0]):  # the second gradient contains the first
        ...     _ = optimizer.step(lambda gradient=gradient: closure(gradient))
        >>> weights[1], weights[3]  # perturbed
        ([3.0, 0.0], [2.0, 1.0])

    References:
        Li et al., *Friendly Sharpness-Aware Minimization*, CVPR 2024, arXiv:2403.12350. Differs from the paper: as in
        the authors' code the mean of earlier steps is subtracted, before g enters the mean; with sigma 1 both
        directions are the same.
    """

    @check_options
    def __init__(
        self,
        params: Params,
        base: BaseFactory,
        *,
        rho: NonNegative = 0.05,
        sigma: NonNegative = 1.0,
        lam: BelowOne = 0.9,
        **engine: Unpack[EngineOptions],
    ) -> None:
        rule = Rule(direction=partial(subtract_running_mean, sigma=sigma, lam=lam), is_shared=True)
        super().__init__(params, base, rule=rule, group_defaults={"rho": rho}, **engine)


def subtract_running_mean(first: FirstPass, *, sigma: float, lam: float) -> tuple[Sequence[Tensor], Tensor]:
    """Return the gradient minus its running mean, and its length."""
    scale, direction = first.scale(), list(first.grads)
    known = [index for index, param in enumerate(first.params) if MEAN in first.memory.get(param, {})]
    means = [first.memory[first.params[index]][MEAN] for index in known]
    grads = [first.grads[index] for index in known]
    if known:
        for index, new in zip(known, torch._foreach_sub(grads, means, alpha=sigma * scale), strict=True):
            direction[index] = new
    length = global_norm(direction)
    if math.isfinite(length.item()):
        if known:
            means = list(torch._foreach_mul(means, lam))  # new tensors: a repeated step starts from the old ones
            torch._foreach_add_(means, grads, alpha=(1 - lam) / scale)
            for index, mean in zip(known, means, strict=True):
                first.memory[first.params[index]][MEAN] = mean
        for index in set(range(len(direction))) - set(known):
            first.memory.setdefault(first.params[index], {})[MEAN] = first.grads[index] / scale
    return direction, length
