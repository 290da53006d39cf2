"""Sharpness-aware minimisation along the base's own momentum, in one pass."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Unpack

from torch import Tensor
from torch.optim import SGD, Optimizer

from uumamba.optim.engine import SharpnessAware
from uumamba.optim.options import EngineOptions
from uumamba.optim.rules import Memory, Rule, to_radius
from uumamba.runtime.errors import UsageError

MOMENTA = ("momentum_buffer", "exp_avg")
CURE = (
    "MSAM moves along the momentum of its base: take one that keeps it, such as partial(SGD, momentum=0.9) or AdamW, "
    "give groups without momentum perturb=False, or take StaleSAM, which needs none."
)


class MSAM(SharpnessAware):
    r"""SAM at the price of its base: the perturbation is along the momentum that the base keeps anyway.

    .. math:: \epsilon = -\rho \frac{v}{\lVert v \rVert_2}, \qquad
              w \leftarrow \mathrm{base}(w, \nabla L(w + \epsilon))

    with v the base's momentum before the step (``momentum_buffer`` or ``exp_avg``) and the norm over all perturbed
    parameters. The sign is the descent's: w is looked at where the momentum is about to carry it. One pass a step, and
    the copy of the weights that every member keeps.

    Between steps the weights are the unperturbed ones, so evaluation, averaging and checkpoints need nothing. The
    first step has no momentum and is the base's own. The loss returned and the running statistics of norms are those
    at :math:`w + \epsilon`, where the only pass is. ``ascent`` is refused. For other edge cases see
    :class:`SharpnessAware`.

    Args:
        params: parameters, named parameters or groups; a group may set ``rho`` or ``perturb=False``.
        base: any callable from parameters to an optimizer that keeps a momentum.
        rho: length of the perturbation, for groups that set none; the authors' class takes 0.3, their example 3, where
            SAM has 0.2.
        engine: what every member takes, such as ``net`` and ``scaler``; see :class:`EngineOptions`.

    Raises:
        ValueError: ``rho`` is negative or not finite.
        UsageError: the base is SGD without momentum, or, in the second step, another that kept none.

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
        Differs from the paper: it stores the perturbed weights and takes the perturbation back for evaluation.
    """

    def __init__(
        self,
        params: Iterable[Any],
        base: Callable[..., Optimizer],
        *,
        rho: float = 0.3,
        **engine: Unpack[EngineOptions],
    ) -> None:
        momentum = MomentumOfBase()
        rule = Rule(lead=momentum.lead, reach=ahead, remember=momentum.remember)
        super().__init__(params, base, rule=rule, group_defaults={"rho": rho}, **engine)
        for index, group in enumerate(self.param_groups):
            if isinstance(self.base, SGD) and group["momentum"] == 0 and group["perturb"] and group["rho"] != 0:
                raise UsageError(f"The base is SGD with momentum 0 in parameter group {index}. {CURE}")


def ahead(group: Mapping[str, Any], length: float) -> float:
    """The factor of a momentum, which is subtracted as in a descent."""
    return -to_radius(group, length)


class MomentumOfBase:
    """Finds the base's momentum, and says so where a base that has stepped keeps none."""

    def __init__(self) -> None:
        self._stepped: dict[Tensor, None] = {}

    def lead(self, params: Sequence[Tensor], memory: Memory, base_memory: Memory) -> list[Tensor | None]:
        """The momentum of each parameter; None before the base's first step."""
        return [self._momentum(param, base_memory.get(param, {})) for param in params]

    def remember(self, params: Sequence[Tensor], memory: Memory) -> None:
        """Note which parameters are about to step, and so should have a momentum from then on."""
        self._stepped.update(dict.fromkeys(params))

    def _momentum(self, param: Tensor, kept: Mapping[str, Any]) -> Tensor | None:
        for key in MOMENTA:
            if isinstance(kept.get(key), Tensor):
                return kept[key]
        if kept or param in self._stepped:
            raise UsageError(
                f"The base keeps none of {', '.join(MOMENTA)}, but {', '.join(map(str, kept)) or 'nothing'}. {CURE}"
            )
        return None
