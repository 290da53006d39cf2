"""Sharpness-aware minimisation."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Unpack

from torch import Tensor
from torch.optim import Optimizer

from uumamba.optim.engine import SharpnessAware
from uumamba.optim.groups import EngineOptions
from uumamba.optim.rules import Rule, Slope
from uumamba.optim.tensors import global_norm


class SAM(SharpnessAware):
    r"""Sharpness-aware minimisation: descent with the gradient of the worst point nearby.

    .. math:: \epsilon = \rho \frac{g}{\lVert g \rVert_2}, \qquad w \leftarrow \mathrm{base}(w, \nabla L(w + \epsilon))

    with g the gradient at w and the norm over all perturbed parameters. It settles in flat minima. Two passes per
    step. For ``rho=0``, flat slopes, values that are not finite and several closures see :class:`SharpnessAware`.

    Args:
        params: parameters, named parameters or groups; a group may set ``rho`` or ``perturb=False``.
        base: any callable from parameters to an optimizer.
        rho: radius of the neighbourhood, for groups that set none.
        engine: options of every member, such as ``net`` and ``scaler``; see :class:`EngineOptions`.

    Raises:
        UsageError: ``rho`` is negative or not finite.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> weight = torch.nn.Parameter(torch.tensor([2.0]))
        >>> optimizer = SAM([weight], partial(torch.optim.SGD, lr=0.25), rho=1.0)
        >>> optimizer.step(lambda: (weight**2).sum())  # gradient 4 at 2, 6 at 3; 2 - 0.25 * 6
        tensor(4.)
        >>> weight.data
        tensor([0.5000])

    References:
        Foret et al., *Sharpness-Aware Minimization for Efficiently Improving Generalization*, ICLR 2021,
        arXiv:2010.01412.
        Differs from the paper: weight decay acts through the base at w and so is not part of the slope.
    """

    def __init__(
        self,
        params: Iterable[Any],
        base: Callable[..., Optimizer],
        *,
        rho: float = 0.05,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(params, base, rule=Rule(climb=follow_gradient), group_defaults={"rho": rho}, **engine)


def follow_gradient(slope: Slope) -> tuple[Sequence[Tensor], Tensor]:
    """Climb along the gradient; the length is its norm."""
    return slope.grads, global_norm(slope.grads)
