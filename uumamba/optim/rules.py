"""Rules of the family's members: direction, radius, time and mix of gradients."""

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

Memory = MutableMapping[Tensor, dict[str, Any]]
"""Values kept by parameter from step to step, as in torch's ``optimizer.state``."""


@dataclass(frozen=True)
class Slope:
    """Gradients at the unclimbed weights, with the context of a rule.

    Attributes:
        params: parameters of groups with ``perturb=True`` that have a gradient.
        grads: the gradient of the loss to climb with respect to each. Under a scaler they carry its factor, which
            cancels in a direction divided by its length; a rule that keeps them over steps must divide by ``scale()``.
        groups: the parameter group of each.
        outputs: the closures' outputs beside the loss, one per accumulated closure.
        memory: the optimizer's own state, by parameter; tensors kept here are saved with the optimizer. A rule puts a
            new tensor in place of an old one instead of changing it, so that a step can be repeated from the start.
        numbers: the rule's own numbers, saved with the optimizer.
        scale: the scaler's factor, 1 without one. It is read from the device, so call it only where it is needed.
        replay: runs the closures again at the current weights, without gradients and without counting in running
            statistics, and returns their outputs.
    """

    params: Sequence[Tensor]
    grads: Sequence[Tensor]
    groups: Sequence[Mapping[str, Any]] = ()
    outputs: Sequence[Any] = ()
    memory: Memory = field(default_factory=dict)
    numbers: MutableMapping[str, float] = field(default_factory=dict)
    scale: Callable[[], float] = lambda: 1.0
    replay: Callable[[], Sequence[Any]] = tuple


Climb = Callable[[Slope], tuple[Sequence[Tensor], Tensor]]
"""The direction to climb, one tensor per parameter, and its length: a scalar tensor in the rule's own measure."""

Lead = Callable[[Sequence[Tensor], Memory, Memory], Sequence[Tensor | None]]
"""``lead(params, memory, base_memory)``: a direction known before any pass; None for a parameter that has none yet."""

Reach = Callable[[Mapping[str, Any], float], float]
"""``reach(group, length)``: the factor of the direction, from the parameter group's options such as ``rho``."""

Mix = Callable[[Slope, Sequence[Tensor]], Sequence[Tensor]]
"""``mix(slope, second)``: the gradient to descend with, from both gradients: at the unclimbed and climbed weights."""

BeforeMix = Callable[[Slope, Sequence[Tensor]], None]
"""``before_mix(slope, second)``: reads the gradients before they are mixed, and may change both in place."""

Due = Callable[[Slope], bool]
"""``due(slope)``: True in a step that climbs."""

Remember = Callable[[Sequence[Tensor], Memory], None]
"""``remember(params, memory)``: called before the base's step, with the old weights and the final gradients in them."""

TINY = float(torch.finfo(torch.float32).tiny)


def scale_to_radius(group: Mapping[str, Any], length: float) -> float:
    """Return the factor that makes a perturbation ``rho`` long.

    Where the slope is flat the direction is 0 in any case.

    Example:
        >>> scale_to_radius({"rho": 0.05}, 2.0)
        0.025
    """
    return float(group["rho"]) / max(length, TINY)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One member of the family: its differences from the engine's plain step.

    Attributes:
        climb: the direction after a first pass; a rule without ``climb`` and ``lead`` never climbs.
        lead: the direction before any pass, so that a step has one pass only, at the climbed weights.
        reach: the factor of the direction, from the group's options and the direction's length.
        mix: joins both gradients; without it the second alone is descended with.
        due: decides after the first pass about climbing in this step; without it every step does.
        instead: the gradient to descend with in a step that does not climb; without it the first pass's.
        remember: keeps something of each step that is taken.
        shared: the rule keeps or decides something that must be the same on every rank, so the first gradient is
            averaged over ranks.
        during_first: a context for the first pass.
        descends_with_first: the update contains the first gradient, so it must be the loss's and no other ascent loss
            is allowed.
    """

    climb: Climb | None = None
    lead: Lead | None = None
    reach: Reach = scale_to_radius
    mix: Mix | None = None
    due: Due | None = None
    instead: Callable[[Slope], Sequence[Tensor]] | None = None
    remember: Remember | None = None
    shared: bool = False
    during_first: Callable[[], AbstractContextManager[Any]] = nullcontext
    descends_with_first: bool = False

    @property
    def takes_ascent(self) -> bool:
        """True where another loss than the minimised one may be climbed."""
        return self.lead is None and self.due is None and not self.descends_with_first


def mix_gradients(mix: Mix, slope: Slope, hooks: Iterable[BeforeMix] = ()) -> None:
    """Replace each climbed parameter's gradient by the mix of both gradients."""
    held = [index for index, param in enumerate(slope.params) if param.grad is not None]
    reached = replace(
        slope,
        params=[slope.params[index] for index in held],
        grads=[slope.grads[index] for index in held],
        groups=[slope.groups[index] for index in held],
    )
    second = [param.grad for param in reached.params if param.grad is not None]
    for hook in hooks:
        hook(reached, second)
    for param, mixed in zip(reached.params, mix(reached, second), strict=True):
        param.grad = mixed
