"""The gradient of a loss and of its slope, with respect to what an input was changed by."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from uumamba.domain_generalization.untraced import draws_of_its_own, uncompiled, with_stand_ins
from uumamba.runtime.errors import UsageError

T = TypeVar("T")
SecondOrder = bool | Literal["finite_difference"]

UNMOVED = (
    "The loss has no gradient in the network's input, so nothing says where to move it; leave out what detaches the "
    "input on its way."
)


class Ascent:
    r"""The direction in which samples lie whose loss, and the sharpness of whose loss, is higher.

    .. math:: \frac{\partial}{\partial p} \Big( L(\theta, p) + \rho\, \lVert \nabla_\theta L(\theta, p) \rVert_2 \Big)
        = \frac{\partial L}{\partial p} + \rho\, \frac{\partial^2 L}{\partial p\, \partial \theta}\, u, \qquad
        u = \frac{\nabla_\theta L}{\lVert \nabla_\theta L \rVert_2}

    The second term is had by a second backward pass through the first, or without one as the difference between the
    two ends of the neighbourhood, in three passes of less memory:

    .. math:: \frac{1}{2} \Big( \frac{\partial L}{\partial p}(\theta + \rho u)
        - \frac{\partial L}{\partial p}(\theta - \rho u) \Big)

    Where a kernel or a compiled graph refuses a second derivative, or leaves its part out because its backward pass is
    opaque to autograd, a warning says so once and differences are taken from then on. That is looked for at every pass.
    Modules that were compiled in place are run as they were written.

    Args:
        rho: weight of the slope's length; 0 leaves it out.
        second_order: True by a second backward pass, ``"finite_difference"``, or False for the gradient of the loss
            alone.

    Raises:
        ValueError: from the constructor, for a rho that is negative or not finite, or an unknown way.
        UsageError: from the gradient, where no weight learns, the loss has no graph or none that leads to the values,
            or a layer is under reentrant activation checkpointing.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(net.weight, 3.0)
        >>> # L = w^2 (1 + p), dL/dw = 2 w (1 + p): at p = 0 both terms give 9 and 0.5 * 6
        >>> Ascent(rho=0.5).gradient(net, lambda p: (net.weight**2 * (1 + p)).sum(), torch.zeros(1))
        tensor([12.])
    """

    def __init__(self, *, rho: float, second_order: SecondOrder = True) -> None:
        if not (math.isfinite(rho) and rho >= 0):
            raise ValueError(f"rho must be finite and not negative, got {rho}")
        if not isinstance(second_order, bool) and second_order != "finite_difference":  # 0 and 1 equal a bool
            raise ValueError(f'second_order must be True, False or "finite_difference", got {second_order!r}')
        self.rho = rho
        self.second_order = second_order if rho else False

    def gradient(self, net: nn.Module, loss_at: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        """In the values, at these values.

        Args:
            net: the network, without wrappers, of whose weights the slope is; those that learn.
            loss_at: ``loss_at(values)``, a scalar, by the network as it stands; called up to three times, at other
                weights too, with the same random draws.
            values: what the input is changed by.
        """
        params = {name: param for name, param in net.named_parameters() if param.requires_grad}
        if not params:
            raise UsageError(
                f"No weight of {type(net).__name__} learns (requires_grad is False in all), so a step has nothing to "
                "change; let some learn."
            )
        passes = _Passes(net, loss_at, values.detach().requires_grad_())
        with torch.enable_grad():
            if self.second_order is False:
                return passes.run(passes.in_values)
            if self.second_order == "finite_difference":
                return self._by_differences(passes, params)
            return self._exact(passes, params)

    def _exact(self, passes: "_Passes", params: Mapping[str, Tensor]) -> Tensor:
        def differentiate_twice(loss: Tensor) -> Tensor | str:
            opaque = _names_of_opaque(loss)  # at every pass: layers come to learn, or into the network, later
            try:
                slopes = torch.autograd.grad(loss, list(params.values()), create_graph=True, allow_unused=True)
                if opaque:
                    return f"the backward pass of {opaque[0]} is opaque"
                return passes.in_values(loss + self.rho * _length(slopes))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # torch has no class for a derivative that is not there
                return str(error).splitlines()[0].rstrip(".")

        found = passes.run(differentiate_twice)
        return self._fall_back(found, passes, params) if isinstance(found, str) else found

    def _fall_back(self, why: str, passes: "_Passes", params: Mapping[str, Tensor]) -> Tensor:
        found = self._by_differences(passes, params)  # what else was wrong is raised here
        self.second_order = "finite_difference"
        warnings.warn(
            f"The network has no second derivative ({why}); UDIM takes differences of first ones from here on, three "
            'passes a perturbation. second_order="finite_difference" asks for them without this warning.',
            stacklevel=2,
        )
        return found

    def _by_differences(self, passes: "_Passes", params: Mapping[str, Tensor]) -> Tensor:
        """By ends a whole rho away: each kink passed over counts with its jump by the distance between the ends.

        After 150 steps of a small U-Mamba with its leaky ReLUs, the cosine to the gradient by two backward passes in
        float64 was 0.93 with ends at rho, 0.91 at rho / 10, 0.67 at rho / 100, and 0.78 without the second term.
        """
        inputs = [passes.values, *params.values()]
        first, *slopes = passes.run(lambda loss: torch.autograd.grad(loss, inputs, allow_unused=True))
        length = float(_length(slopes))
        if first is None:
            raise UsageError(UNMOVED)
        if length == 0:
            return first
        ends: list[Tensor] = []
        for reach in (self.rho / length, -self.rho / length):
            weights = {
                name: param.detach() if slope is None else param.detach() + reach * slope
                for (name, param), slope in zip(params.items(), slopes, strict=True)
            }
            ends.append(passes.run(passes.in_values, weights))
        return first + (ends[0] - ends[1]) / 2


@dataclass(frozen=True)
class _Passes:
    """Passes of a network that leave no trace in it, each with the random draws of every other."""

    net: nn.Module
    loss_at: Callable[[Tensor], Tensor]
    values: Tensor

    def run(self, take: Callable[[Tensor], T], weights: Mapping[str, Tensor] | None = None) -> T:
        """What ``take`` makes of the loss of one pass; every gradient is taken in it, at the pass's own weights."""
        with draws_of_its_own(self.values, self.net), uncompiled(self.net):
            return with_stand_ins(self.net, partial(self._run, take), weights)

    def in_values(self, loss: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(loss, self.values, allow_unused=True)
        if found is None:
            raise UsageError(UNMOVED)
        return found

    def _run(self, take: Callable[[Tensor], T]) -> T:
        loss = self.loss_at(self.values)
        if not loss.requires_grad:
            raise UsageError(
                "The loss has no graph, so no gradient says where to move the input; compute it by differentiable "
                "operations of the network's output, without detach(), item() or torch.no_grad()."
            )
        try:
            return take(loss)
        except RuntimeError as error:
            if not _is_reentrant(loss):
                raise
            raise UsageError(
                "A layer of the network is under reentrant activation checkpointing, which torch takes no gradient "
                "in the input through; pass use_reentrant=False to torch.utils.checkpoint."
            ) from error


def _length(slopes: Sequence[Tensor | None]) -> Tensor:
    """The norm of all together, in at least float32, with gradient 0 at 0."""
    norms = [
        torch.linalg.vector_norm(slope, dtype=torch.promote_types(slope.dtype, torch.float32))
        for slope in slopes
        if slope is not None
    ]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def _names_of_opaque(loss: Tensor) -> list[str]:
    """A list that gets, once the graph is gone through, the functions through whose gradients nothing flows back.

    A backward pass that calls a kernel outside autograd returns tensors that look constant. One that is marked as
    differentiable once returns tensors whose history is an error, but ``autograd.grad`` goes along paths to its inputs
    alone and this path ends before. Either way the second derivative would go without them in silence, and one such
    gradient among several is enough. Some are constant in truth, those of a function that ends the network and is
    linear; they look alike, and differences are right for them too.
    """
    found: list[str] = []

    def look(name: str, wanted: Sequence[bool], gradients: Sequence[Tensor | None], _: Any) -> None:
        given = [each for each, needed in zip(gradients, wanted, strict=True) if needed and each is not None]
        if not all(_has_history(each) for each in given):
            found.append(name.removesuffix("Backward"))

    for node in _nodes(loss):
        if isinstance(node, BackwardCFunction):
            wanted = [after is not None for after, _ in node.next_functions]
            node.register_hook(partial(look, type(node).__name__, wanted))
    return found


def _has_history(gradient: Tensor) -> bool:
    return gradient.requires_grad and (gradient.grad_fn is None or gradient.grad_fn.name() != "torch::autograd::Error")


def _nodes(loss: Tensor) -> Iterator[Any]:
    """Every function of the graph, once."""
    waiting: list[Any] = [loss.grad_fn]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [each for each, _ in node.next_functions]


def _is_reentrant(loss: Tensor) -> bool:
    """Whether a function of the graph is that of torch's reentrant checkpointing."""
    return any(type(node).__name__ == "CheckpointFunctionBackward" for node in _nodes(loss))
