"""What tells the members of the family apart: where to climb, how far, and how to mix the two gradients."""

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slope:
    """What a climb is decided from: the parameters to perturb, at the unclimbed weights.

    Attributes:
        params: parameters of groups with ``perturb=True`` that have a gradient.
        grads: the gradient of the loss to climb with respect to each. Under a scaler they carry its factor, which
            cancels in a direction divided by its length; a rule that keeps them over steps must divide by it.
        outputs: what the closures returned beside the loss, one an accumulated closure.
        memory: the optimizer's own state, by parameter; tensors kept here are saved with the optimizer.
    """

    params: Sequence[Tensor]
    grads: Sequence[Tensor]
    outputs: Sequence[Any]
    memory: MutableMapping[Tensor, dict[str, Any]]


Climb = Callable[[Slope], tuple[Sequence[Tensor], Tensor]]
"""The direction to climb, one tensor a parameter, and its length: a scalar tensor in the rule's own measure."""

Reach = Callable[[float, float], float]
"""``reach(rho, length)``: the factor of the direction; ``rho`` is the parameter group's."""

Mix = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]
"""``mix(first, second)``: the gradient to descend with, of those at the unclimbed and at the climbed weights."""

TINY = float(torch.finfo(torch.float32).tiny)


def to_radius(rho: float, length: float) -> float:
    """The factor that makes the perturbation ``rho`` long; where the slope is flat the direction is 0 anyway.

    Example:
        >>> to_radius(0.05, 2.0)
        0.025
    """
    return rho / max(length, TINY)


@torch.no_grad()
def mix_gradients(mix: Mix, slope: Slope) -> None:
    """Replace the gradient that each climbed parameter holds by its mix with the one it had before the climb."""
    pairs = [(param, first) for param, first in zip(slope.params, slope.grads, strict=True) if param.grad is not None]
    second = [param.grad for param, _ in pairs if param.grad is not None]
    for (param, _), mixed in zip(pairs, mix([first for _, first in pairs], second), strict=True):
        param.grad = mixed
