"""Sharpness-aware minimisation."""

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor

from uumamba.optim.engine import SharpnessAware
from uumamba.optim.groups import BaseFactory, EngineOptions, Params
from uumamba.optim.rules import FirstPass, Rule
from uumamba.optim.tensors import global_norm
from uumamba.runtime.options import NonNegative, check_options


class SAM(SharpnessAware):
    r"""Sharpness-aware minimisation: descent with the gradient at perturbed weights.

    .. math:: \epsilon = \rho \frac{g}{\lVert g \rVert_2}, \qquad w \leftarrow \mathrm{base}(w, \nabla L(w + \epsilon))

    with g the gradient at w and the norm over all perturbed parameters. It converges to flat minima. Two passes per
    step. For ``rho=0``, gradients of 0, values that are not finite and several closures see :class:`SharpnessAware`.

    Args:
        params: parameters, named parameters or groups; a group may set ``rho`` or ``perturb=False``.
        base: any callable from parameters to an optimizer.
        rho: radius of the neighbourhood.
        engine: options of every optimizer of uumamba.optim, such as ``net`` and ``scaler``; see :class:`EngineOptions`.

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
        Differs from the paper: weight decay acts through the base at w and so is not part of the gradient.
    """

    @check_options
    def __init__(
        self,
        params: Params,
        base: BaseFactory,
        *,
        rho: NonNegative = 0.05,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(params, base, rule=Rule(direction=follow_gradient), group_defaults={"rho": rho}, **engine)


def follow_gradient(first: FirstPass) -> tuple[Sequence[Tensor], Tensor]:
    """Return the gradient and its norm."""
    return first.grads, global_norm(first.grads)
