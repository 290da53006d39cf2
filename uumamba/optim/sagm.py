"""Sharpness-aware gradient matching."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from uumamba.optim.engine import SharpnessAware
from uumamba.optim.groups import EngineOptions
from uumamba.optim.rules import Reach, Rule, Slope, scale_to_radius
from uumamba.optim.tensors import global_norm
from uumamba.runtime.errors import require


class SAGM(SharpnessAware):
    r"""Sharpness-aware gradient matching: the mean of both gradients, kept aligned.

    .. math:: \epsilon = \Big(\frac{\rho}{\lVert g \rVert_2} - \alpha\Big) g, \qquad
              w \leftarrow \mathrm{base}\big(w,\ \tfrac{1}{2} (g + \nabla L(w + \epsilon))\big)

    with g the gradient at w and the norm over all perturbed parameters; the others take the second gradient. It lowers
    the loss, the loss nearby and, as both gradients align, the gap between them. Two passes per step. Under a scaler
    :math:`\alpha g` is in true units. A group with ``rho`` 0 is not moved, not even by :math:`\alpha`. ``ascent`` is
    refused: half of the step would descend with its gradient. For other edge cases see :class:`SharpnessAware`.

    Args:
        params: parameters, named parameters or groups; a group may set ``rho`` or ``perturb=False``.
        base: any callable from parameters to an optimizer.
        rho: radius of the neighbourhood, for groups that set none.
        alpha: step back along the gradient from the climbed weights, like a learning rate.
        engine: options of every member, such as ``net`` and ``scaler``; see :class:`EngineOptions`.

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
        Differs from the paper: weight decay acts through the base at w and so is not part of the slope.
    """

    def __init__(
        self,
        params: Iterable[Any],
        base: Callable[..., Optimizer],
        *,
        rho: float = 0.05,
        alpha: float = 0.001,
        **engine: Unpack[EngineOptions],
    ) -> None:
        require(alpha >= 0, "alpha", got=alpha, expected="a number of at least 0")
        rule = Rule(
            climb=follow_unscaled_gradient,
            reach=radius_minus_alpha(alpha=alpha),
            mix=average_gradients,
            descends_with_first=True,
        )
        super().__init__(params, base, rule=rule, group_defaults={"rho": rho}, **engine)


def follow_unscaled_gradient(slope: Slope) -> tuple[Sequence[Tensor], Tensor]:
    """Climb along the gradient without the scaler's factor."""
    scale = slope.scale()
    grads = slope.grads if scale == 1 or not slope.grads else torch._foreach_div(list(slope.grads), scale)
    return grads, global_norm(grads)


def radius_minus_alpha(*, alpha: float) -> Reach:
    r"""Make the reach :math:`\rho / l - \alpha`."""

    def reach(group: Mapping[str, Any], length: float) -> float:
        return scale_to_radius(group, length) - alpha

    return reach


def average_gradients(slope: Slope, second: Sequence[Tensor]) -> Sequence[Tensor]:
    """Average the gradients at w and at the climbed weights."""
    if second:
        torch._foreach_lerp_(list(second), list(slope.grads), 0.5)
    return second
