"""Sharpness-aware minimisation along the last step's gradient, in one pass."""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from uumamba.optim.engine import SharpnessAware
from uumamba.optim.groups import BaseFactory, EngineOptions, Params
from uumamba.optim.rules import Memory, Rule
from uumamba.runtime.options import NonNegative, check_options

LAST = "last_gradient"


class StaleSAM(SharpnessAware):
    r"""SAM in one pass, perturbed along the last step's gradient.

    .. math:: \epsilon_t = \rho \frac{g_{t-1}}{\lVert g_{t-1} \rVert_2}, \qquad
              g_t = \nabla L(w_t + \epsilon_t), \qquad w_{t+1} = \mathrm{base}(w_t, g_t)

    with the norm over all perturbed parameters. One pass per step, with any base. The optimizer keeps one copy of the
    perturbed parameters, besides the backup of the weights.

    The first step has no direction and is the base's own; a skipped step stores nothing. The returned loss and the
    running statistics of norms are those of the only pass, at :math:`w + \epsilon`. ``ascent`` is rejected. For other
    edge cases see :class:`SharpnessAware`.

    Args:
        params: parameters, named parameters or groups; a group may set ``rho`` or ``perturb=False``.
        base: any callable from parameters to an optimizer.
        rho: radius of the neighbourhood.
        engine: options of every optimizer of uumamba.optim, such as ``net`` and ``scaler``; see :class:`EngineOptions`.

    Raises:
        UsageError: ``rho`` is negative or not finite.

    Example:
        >>> from functools import partial
        >>> weight = torch.nn.Parameter(torch.tensor([2.0]))
        >>> optimizer = StaleSAM([weight], partial(torch.optim.SGD, lr=0.25), rho=0.5)
        >>> for _ in range(2):  # gradient 4 at 2; then 3 at 1.5, from 1
        ...     _ = optimizer.step(lambda: (weight**2).sum())
        >>> weight.data
        tensor([0.2500])

    References:
        The direction is that of *Asynchronous Sharpness-Aware Minimization*, 2025, arXiv:2503.11147.
        Differs from the paper: in the paper a second device computes the gradient at the last weights; here it is the
        last step's gradient at the perturbed weights, at no cost.
    """

    accepts_ascent = False

    @check_options
    def __init__(
        self,
        params: Params,
        base: BaseFactory,
        *,
        rho: NonNegative = 0.05,
        **engine: Unpack[EngineOptions],
    ) -> None:
        rule = Rule(early_direction=find_last_gradients, remember=store_gradients)
        super().__init__(params, base, rule=rule, group_defaults={"rho": rho}, **engine)


def find_last_gradients(params: Sequence[Tensor], memory: Memory, base_memory: Memory) -> list[Tensor | None]:
    """Return the stored gradients; None for a parameter without one."""
    return [memory.get(param, {}).get(LAST) for param in params]


def store_gradients(params: Sequence[Tensor], memory: Memory) -> None:
    """Copy the final gradients, since a base may change them in place."""
    grads = [param.grad for param in params if param.grad is not None]
    buffers = [memory.setdefault(param, {}) for param in params]
    for buffer, grad in zip(buffers, grads, strict=True):
        if LAST not in buffer:
            buffer[LAST] = torch.empty_like(grad)
    if grads:
        torch._foreach_copy_([buffer[LAST] for buffer in buffers], grads)
