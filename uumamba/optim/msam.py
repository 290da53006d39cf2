"""Sharpness-aware minimisation along the base's momentum, in one pass."""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from torch import Tensor
from torch.optim import SGD

from uumamba.optim.engine import SharpnessAware
from uumamba.optim.groups import BaseFactory, EngineOptions, Params
from uumamba.optim.rules import Memory, Rule, scale_to_radius
from uumamba.runtime.errors import require
from uumamba.runtime.options import NonNegative, check_options

MOMENTA = ("momentum_buffer", "exp_avg")


class MSAM(SharpnessAware):
    r"""SAM in one pass, perturbed along the base's momentum.

    .. math:: \epsilon = -\rho \frac{v}{\lVert v \rVert_2}, \qquad
              w \leftarrow \mathrm{base}(w, \nabla L(w + \epsilon))

    with v the base's momentum before the step (``momentum_buffer`` or ``exp_avg``) and the norm over all perturbed
    parameters. The sign is that of the descent: the gradient is taken at the weights to which the momentum moves w. One
    pass per step, and the backup of the weights that every perturbing optimizer keeps.

    Between steps the weights are the original ones, so evaluation, averaging and checkpoints need no restoring. The
    first step has no momentum and is the base's own. The returned loss and the running statistics of norms are those
    of the only pass, at :math:`w + \epsilon`. ``ascent`` is rejected. Weight decay acts through the base, at w. For
    other edge cases see :class:`SharpnessAware`.

    Args:
        params: parameters, named parameters or groups; a group may set ``rho`` or ``perturb=False``.
        base: any callable from parameters to an optimizer that keeps a momentum.
        rho: length of the perturbation; the authors' class has 0.3, their example 3, with 0.2 for SAM.
        engine: options of every optimizer of uumamba.optim, such as ``net`` and ``scaler``; see :class:`EngineOptions`.

    Raises:
        UsageError: ``rho`` is negative or not finite.
        UsageError: the base is SGD without momentum, or its state has no momentum in the second step.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> weight = torch.nn.Parameter(torch.tensor([2.0]))
        >>> optimizer = MSAM([weight], partial(torch.optim.SGD, lr=0.25, momentum=0.5), rho=0.5)
        >>> for _ in range(2):  # momentum 4 from 2 to 1; then 0.5 * 4 + the gradient 1 at 0.5, from 1
        ...     _ = optimizer.step(lambda: (weight**2).sum())
        >>> weight.data
        tensor([0.2500])

    References:
        Becker et al., *Momentum-SAM: Sharpness Aware Minimization without Computational Overhead*, 2024,
        arXiv:2401.12033.
        Differs from the paper: it stores the perturbed weights and takes the perturbation back for evaluation. The
        authors' SGD also adds the weight decay of the perturbed weights.
    """

    accepts_ascent = False

    @check_options
    def __init__(
        self,
        params: Params,
        base: BaseFactory,
        *,
        rho: NonNegative = 0.3,
        **engine: Unpack[EngineOptions],
    ) -> None:
        rule = Rule(early_direction=find_momenta, factor=negate_radius)
        super().__init__(params, base, rule=rule, group_defaults={"rho": rho}, **engine)
        require(
            not isinstance(self.base, SGD)
            or all(group["momentum"] or not group["rho"] or not group["perturb"] for group in self.param_groups),
            "base",
            got="SGD with momentum 0",
            expected="an optimizer with momentum",
            fix="give groups without momentum perturb=False, or take StaleSAM",
        )


def negate_radius(group: Mapping[str, Any], length: float) -> float:
    """Return the negative factor, since a descent subtracts the momentum."""
    return -scale_to_radius(group, length)


def find_momenta(params: Sequence[Tensor], memory: Memory, base_memory: Memory) -> list[Tensor | None]:
    """Find the base's momentum of each parameter; None before the first step.

    Raises:
        UsageError: the base keeps a state without momentum.
    """
    return [_find_momentum(base_memory.get(param, {})) for param in params]


def _find_momentum(state: Mapping[str, Any]) -> Tensor | None:
    found = [state[key] for key in MOMENTA if isinstance(state.get(key), Tensor)]
    require(
        found or not state,
        "base",
        got=f"an optimizer with the state {', '.join(map(str, state))}",
        expected=f"an optimizer with the state {' or '.join(MOMENTA)}",
        fix="take SGD with momentum or AdamW, or StaleSAM",
    )
    return found[0] if found else None
