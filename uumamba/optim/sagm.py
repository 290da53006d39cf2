"""Sharpness-aware gradient matching."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor

from uumamba.optim.engine import SharpnessAware
from uumamba.optim.groups import BaseFactory, EngineOptions, Params
from uumamba.optim.rules import FirstPass, Rule, scale_to_radius
from uumamba.optim.tensors import global_norm
from uumamba.runtime.options import NonNegative, check_options


class SAGM(SharpnessAware):
    r"""Sharpness-aware gradient matching: descent with the mean of both gradients.

    .. math:: \epsilon = \Big(\frac{\rho}{\lVert g \rVert_2} - \alpha\Big) g, \qquad
              w \leftarrow \mathrm{base}\big(w,\ \tfrac{1}{2} (g + \nabla L(w + \epsilon))\big)

    with g the gradient at w and the norm over all perturbed parameters; the others take the second gradient. The step
    lowers the original loss, the perturbed loss and, as both gradients align, the gap between them. Two passes per
    step. Under a scaler :math:`\alpha g` is in true units. A group with ``rho`` 0 is not perturbed, not even by
    :math:`\alpha`. ``ascent`` is rejected: half of the step would descend with its gradient. For other edge cases see
    :class:`SharpnessAware`.

    Args:
        params: parameters, named parameters or groups; a group may set ``rho`` or ``perturb=False``.
        base: any callable from parameters to an optimizer.
        rho: radius of the neighbourhood.
        alpha: step back along the gradient from the perturbed weights, like a learning rate.
        engine: options of every optimizer of uumamba.optim, such as ``net`` and ``scaler``; see :class:`EngineOptions`.

    Raises:
        UsageError: ``rho`` or ``alpha`` is negative, or ``rho`` is not finite.

    Example:
        >>> from functools import partial
        >>> weight = torch.nn.Parameter(torch.tensor([2.0]))
        >>> optimizer = SAGM([weight], partial(torch.optim.SGD, lr=0.25), rho=1.0, alpha=0.125)
        >>> optimizer.step(lambda: (weight**2).sum())  # gradient 4 at 2, 5 at 2 + 1 - 0.125 * 4
        tensor(4.)
        >>> weight.data
        tensor([0.8750])

    References:
        Wang et al., *Sharpness-Aware Gradient Matching for Domain Generalization*, CVPR 2023, arXiv:2303.10353.
        Differs from the paper: weight decay acts through the base at w and so is not part of the gradient.
    """

    accepts_ascent = False

    @check_options
    def __init__(
        self,
        params: Params,
        base: BaseFactory,
        *,
        rho: NonNegative = 0.05,
        alpha: NonNegative = 0.001,
        **engine: Unpack[EngineOptions],
    ) -> None:
        rule = Rule(
            direction=follow_unscaled_gradient,
            factor=partial(subtract_alpha, alpha=alpha),
            mix=average_gradients,
            mixes_task_gradient=True,
        )
        super().__init__(params, base, rule=rule, group_defaults={"rho": rho}, **engine)


def follow_unscaled_gradient(first: FirstPass) -> tuple[Sequence[Tensor], Tensor]:
    """Return the gradient without the scaler's factor, and its norm."""
    scale = first.scale()
    grads = first.grads if scale == 1 or not first.grads else torch._foreach_div(list(first.grads), scale)
    return grads, global_norm(grads)


def subtract_alpha(group: Mapping[str, Any], length: float, *, alpha: float) -> float:
    r"""Return the factor :math:`\rho / l - \alpha`."""
    return scale_to_radius(group, length) - alpha


def average_gradients(first: FirstPass, second: Sequence[Tensor]) -> Sequence[Tensor]:
    """Average the gradients at the original and at the perturbed weights."""
    if second:
        torch._foreach_lerp_(list(second), list(first.grads), 0.5)
    return second
