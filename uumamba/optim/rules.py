"""Rules of the optimizers: direction, radius, time and mix of gradients."""

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from uumamba.optim.tensors import put_gradients

Memory = MutableMapping[Tensor, dict[str, Any]]
"""Values kept by parameter from step to step, as in torch's ``optimizer.state``."""


@dataclass(frozen=True)
class FirstPass:
    """Gradients at the original weights, with the context of a rule.

    Attributes:
        params: parameters of groups with ``perturb=True`` that have a gradient.
        grads: gradient of the ascent loss with respect to each parameter. Under a scaler they carry its factor, which
            cancels in a direction divided by its length; a rule that keeps them over steps must divide by ``scale()``.
        groups: the parameter group of each parameter.
        outputs: the closures' outputs without the loss, one per accumulated closure.
        memory: the optimizer's own state, by parameter; tensors kept here are saved with the optimizer. A rule replaces
            an old tensor by a new one instead of changing it, so that a step can be repeated from the start.
        numbers: the rule's own numbers, saved with the optimizer.
        scale: the scaler's factor, 1 without a scaler. It is read from the device, so call it only if needed.
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


Direction = Callable[[FirstPass], tuple[Sequence[Tensor], Tensor]]
"""Function ``direction(first)`` to the perturbation's direction and its length; see :class:`Rule`."""
EarlyDirection = Callable[[Sequence[Tensor], Memory, Memory], Sequence[Tensor | None]]
"""Function ``direction(params, memory, base_memory)`` to a direction before any pass; see :class:`Rule`."""
Factor = Callable[[Mapping[str, Any], float], float]
"""Function ``factor(group, length)`` to the factor of the direction; see :class:`Rule`."""
Mix = Callable[[FirstPass, Sequence[Tensor]], Sequence[Tensor]]
"""Function ``mix(first, second)`` of two gradients to the gradient to descend with; see :class:`Rule`."""
BeforeMix = Callable[[FirstPass, Sequence[Tensor]], None]
"""Hook ``hook(first, second)`` that may change both gradients in place before they are mixed."""
IsDue = Callable[[FirstPass], bool]

TINY = float(torch.finfo(torch.float32).tiny)


def scale_to_radius(group: Mapping[str, Any], length: float) -> float:
    """Return the factor that makes a perturbation ``rho`` long.

    For a gradient of 0 the perturbation is 0 with any factor.

    Example:
        >>> scale_to_radius({"rho": 0.05}, 2.0)
        0.025
    """
    return float(group["rho"]) / max(length, TINY)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Differences of an optimizer from the engine's plain step.

    Attributes:
        direction: ``direction(first)`` after a first pass returns the direction of the perturbation, one tensor per
            parameter, and its length, a scalar tensor in the rule's own measure.
        early_direction: ``early_direction(params, memory, base_memory)`` returns the direction before any pass, None
            for a parameter without one, so that a step has a single pass, at the perturbed weights.
        factor: ``factor(group, length)`` returns the factor of the direction, from the parameter group's options such
            as ``rho``.
        mix: ``mix(first, second)`` returns the gradient to descend with, from the gradients at the original and at the
            perturbed weights; by default the second one.
        is_due: ``is_due(first)`` returns whether the step perturbs; by default every step does.
        undue_gradient: ``undue_gradient(first)`` returns the gradient to descend with in a step that does not perturb;
            by default the first pass's.
        remember: ``remember(params, memory)`` is called before the base's step, with the old weights and the final
            gradients in the parameters.
        is_shared: the rule keeps or decides something that must be the same on every rank, so the first gradient is
            averaged over ranks.
        first_pass_context: a context for the first pass.
        mixes_task_gradient: ``mix`` needs the training loss's gradient at the original weights, so an ascent loss is
            rejected. GSAM's mix takes the gradient of an ascent loss as well.
    """

    direction: Direction | None = None
    early_direction: EarlyDirection | None = None
    factor: Factor = scale_to_radius
    mix: Mix | None = None
    is_due: IsDue | None = None
    undue_gradient: Callable[[FirstPass], Sequence[Tensor]] | None = None
    remember: Callable[[Sequence[Tensor], Memory], None] | None = None
    is_shared: bool = False
    first_pass_context: Callable[[], AbstractContextManager[Any]] = nullcontext
    mixes_task_gradient: bool = False

    @property
    def accepts_ascent(self) -> bool:
        """Return whether the perturbation may follow a different loss."""
        return self.early_direction is None and self.is_due is None and not self.mixes_task_gradient


def mix_gradients(mix: Mix, first: FirstPass, hooks: Iterable[BeforeMix] = ()) -> None:
    """Replace each perturbed parameter's gradient by the mix of both gradients."""
    held = [index for index, param in enumerate(first.params) if param.grad is not None]
    first = replace(
        first,
        params=[first.params[index] for index in held],
        grads=[first.grads[index] for index in held],
        groups=[first.groups[index] for index in held],
    )
    second = [param.grad for param in first.params if param.grad is not None]
    for hook in hooks:
        hook(first, second)
    put_gradients(first.params, mix(first, second))
