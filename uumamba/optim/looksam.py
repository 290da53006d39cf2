"""Sharpness-aware minimisation with one second pass in k steps."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Unpack

import torch
from torch import Tensor

from uumamba.optim.adaptive_trigger import AdaptiveTrigger
from uumamba.optim.engine import SharpnessAware
from uumamba.optim.groups import BaseFactory, EngineOptions, Params
from uumamba.optim.rules import FirstPass, Rule
from uumamba.optim.sam import follow_gradient
from uumamba.optim.tensors import global_norm, projection_factor
from uumamba.runtime.options import NonNegative, PositiveInt, check_options

ORTHOGONAL = "flatter"
WAIT = "steps_until_climb"


class LookSAM(SharpnessAware):
    r"""SAM every k steps; steps between reuse the orthogonal gradient.

    .. math:: g_v = g_s - \frac{\langle g_s, g \rangle}{\lVert g \rVert_2^2}\, g, \qquad
              \text{between: } g + \alpha \frac{\lVert g \rVert_2}{\lVert g_v \rVert_2}\, g_v

    with g the gradient at w and :math:`g_s` SAM's gradient, with which a perturbed step descends. Products and norms
    are over all perturbed parameters. One pass per step, and a second pass every k steps. The optimizer keeps one copy
    of the perturbed parameters, besides the backup of the weights.

    The part :math:`g_v` orthogonal to g points to flatter regions. A second pass that is not finite is repeated in the
    next step. A :math:`g_v` no longer than the rounding of :math:`g_s` counts as 0, as scaling it up to the gradient's
    length would add noise. With several closures and ``accumulation="micro"`` each closure counts as a step. All ranks
    perturb along the averaged gradient. ``ascent`` is rejected: steps between would descend with its gradient. For
    other edge cases see :class:`SharpnessAware`.

    Under AdamW with small batches the reused part outweighs gradients that differ from batch to batch: on ACDC with 4
    patches per batch, 400 steps gave a Dice of 0.15 with ``alpha`` 0.7 and of 0.48 without perturbation. The paper's
    batches have thousands of images.

    Args:
        params: parameters, named parameters or groups; a group may set ``rho`` or ``perturb=False``.
        base: any callable from parameters to an optimizer.
        rho: radius of the neighbourhood.
        k: steps from one second pass to the next.
        alpha: length of the added part, relative to the gradient's length.
        trigger: decides about the second pass, in place of ``k``; the first step has one in any case.
        engine: options of every optimizer of uumamba.optim, such as ``net`` and ``scaler``; see :class:`EngineOptions`.

    Raises:
        UsageError: ``rho`` or ``alpha`` is negative, or ``k`` is below 1.

    Example:
        >>> from functools import partial
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = LookSAM([weight], partial(torch.optim.SGD, lr=0.1), rho=0.05, k=5)
        >>> calls = []
        >>> def closure():
        ...     calls.append(None)
        ...     return weight[0] ** 2 + 4 * weight[1] ** 2
        >>> for _ in range(10):
        ...     _ = optimizer.step(closure)
        >>> len(calls)
        12

    References:
        Liu et al., *Towards Efficient and Scalable Sharpness-Aware Minimization*, CVPR 2022, arXiv:2203.02714.
        Differs from the paper: nothing is added where :math:`g_v` is only rounding.
    """

    accepts_ascent = False

    @check_options
    def __init__(
        self,
        params: Params,
        base: BaseFactory,
        *,
        rho: NonNegative = 0.05,
        k: PositiveInt = 5,
        alpha: NonNegative = 0.7,
        trigger: AdaptiveTrigger | None = None,
        **engine: Unpack[EngineOptions],
    ) -> None:
        rule = Rule(
            direction=follow_gradient,
            is_due=is_every_k_steps if trigger is None else partial(force_first, trigger=trigger),
            mix=partial(store_orthogonal, k=k),
            undue_gradient=partial(add_stored, alpha=alpha),
            is_shared=True,
        )
        super().__init__(params, base, rule=rule, group_defaults={"rho": rho}, **engine)


def is_every_k_steps(first: FirstPass) -> bool:
    """Count this step and return whether it is a k-th step."""
    left = first.numbers.get(WAIT, 0)
    if left > 0:
        first.numbers[WAIT] = left - 1
    return left <= 0


def force_first(first: FirstPass, *, trigger: AdaptiveTrigger) -> bool:
    """Return the trigger's answer, True until the first second pass has succeeded."""
    return trigger(first) or WAIT not in first.numbers


def store_orthogonal(first: FirstPass, second: Sequence[Tensor], *, k: int) -> Sequence[Tensor]:
    """Store the normalized orthogonal part of the second gradient."""
    if not second:
        return second
    share, norm = projection_factor(second, onto=first.grads), global_norm(second).item()
    orthogonal = list(first.grads)
    torch._foreach_mul_(orthogonal, -share)
    torch._foreach_add_(orthogonal, list(second))
    length = global_norm(orthogonal).item()
    if math.isfinite(norm) and math.isfinite(length):
        rounding = max(torch.finfo(part.dtype).eps for part in orthogonal) * norm
        torch._foreach_div_(orthogonal, length if length > rounding else math.inf)
        for param, part in zip(first.params, orthogonal, strict=True):
            first.memory.setdefault(param, {})[ORTHOGONAL] = part
        first.numbers[WAIT] = k - 1
    return second


def add_stored(first: FirstPass, *, alpha: float) -> Sequence[Tensor]:
    """Return the gradient plus the stored part, alpha times as long."""
    kept = [first.memory.get(param, {}).get(ORTHOGONAL) for param in first.params]
    pairs = [(grad, part) for grad, part in zip(first.grads, kept, strict=True) if part is not None]
    if pairs:
        length = global_norm(first.grads).item()
        torch._foreach_add_([grad for grad, _ in pairs], [part for _, part in pairs], alpha=alpha * length)
    return first.grads
