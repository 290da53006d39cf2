"""Input gradient of a loss and of the length of its weight gradient."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from uumamba.domain_generalization.side_pass import run_with_copies
from uumamba.runtime.errors import UsageError, require

T = TypeVar("T")
SecondOrder = bool | Literal["finite_difference"]
ERROR = "torch::autograd::Error"
"""Name of the node that torch puts behind a gradient that is differentiable once."""


class InputAscent:
    r"""Input gradient of the loss plus rho times its gradient norm.

    .. math:: \frac{\partial}{\partial p} \Big( L(\theta, p) + \rho\, \lVert \nabla_\theta L(\theta, p) \rVert_2 \Big)
        = \frac{\partial L}{\partial p} + \rho\, \frac{\partial^2 L}{\partial p\, \partial \theta}\, u, \qquad
        u = \frac{\nabla_\theta L}{\lVert \nabla_\theta L \rVert_2}

    A second backward pass through the first gives the second term. The alternative is the difference between both ends
    of the neighbourhood, in three passes of less memory:

    .. math:: \frac{1}{2} \Big( \frac{\partial L}{\partial p}(\theta + \rho u)
        - \frac{\partial L}{\partial p}(\theta - \rho u) \Big)

    Where a kernel refuses a second derivative, or hides its backward pass from autograd, a warning says so once and
    finite differences are used from then on. Kernels are checked in every pass.

    Args:
        rho: weight of the gradient norm; 0 leaves it out.
        second_order: True for a second backward pass, ``"finite_difference"``, or False for the gradient of the loss
            alone.

    Raises:
        UsageError: rho is negative or not finite, or ``second_order`` is unknown; or, from :meth:`gradient`, no weight
            is trainable, or the loss has no gradient in the values.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(net.weight, 3.0)
        >>> # L = w^2 (1 + p), dL/dw = 2 w (1 + p): at p = 0 both terms give 9 and 0.5 * 6
        >>> InputAscent(rho=0.5).gradient(net, lambda p: (net.weight**2 * (1 + p)).sum(), torch.zeros(1))
        tensor([12.])
    """

    def __init__(self, *, rho: float, second_order: SecondOrder = True) -> None:
        require(math.isfinite(rho) and rho >= 0, "rho", got=rho, expected="a finite number of at least 0")
        known = isinstance(second_order, bool) or second_order == "finite_difference"
        require(known, "second_order", got=second_order, expected='True, False or "finite_difference"')
        self.rho = rho
        self.second_order = second_order if rho else False

    def gradient(self, net: nn.Module, loss_at: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        """Compute the gradient at ``values``.

        Args:
            net: the bare network whose trainable weights count.
            loss_at: ``loss_at(values)``, a scalar, by the network; called up to three times, at other weights too, with
                the same random draws.
            values: change the input.
        """
        params = {name: param for name, param in net.named_parameters() if param.requires_grad}
        require(params, "net", got="no trainable weight", expected="requires_grad=True in at least one")
        passes = _Passes(net, loss_at, values.detach().requires_grad_())
        with torch.enable_grad():
            if not self.second_order:
                return passes.run(passes.input_gradient)
            if self.second_order == "finite_difference":
                return self._finite_difference(passes, params)
            found = passes.run(partial(self._differentiate_twice, passes, params))
            if isinstance(found, Tensor):
                return found
            difference = self._finite_difference(passes, params)  # raises any other error again
        self.second_order = "finite_difference"
        warnings.warn(
            f"The network has no second derivative ({found}); UDIM uses finite differences from here on, three passes "
            'a perturbation. second_order="finite_difference" asks for them without this warning.',
            stacklevel=2,
        )
        return difference

    def _differentiate_twice(self, passes: "_Passes", params: Mapping[str, Tensor], loss: Tensor) -> Tensor | str:
        """Return the gradient, or the reason why there is no second derivative."""
        hidden = _watch_hidden_functions(loss)
        try:
            gradients = torch.autograd.grad(loss, list(params.values()), create_graph=True, allow_unused=True)
            if hidden:
                return f"{hidden[0]} hides its backward pass"
            return passes.input_gradient(loss + self.rho * _norm(gradients))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # torch has no class for a derivative that is not there
            return str(error).splitlines()[0].rstrip(".")

    def _finite_difference(self, passes: "_Passes", params: Mapping[str, Tensor]) -> Tensor:
        """Compare both ends at a distance of rho, not closer: rectifiers need a finite step.

        After 150 steps of a small U-Mamba with its leaky ReLUs, the cosine to the gradient by two backward passes in
        float64 was 0.93 with ends at rho, 0.91 at rho / 10, 0.67 at rho / 100, and 0.78 without the second term.
        """
        inputs = [passes.values, *params.values()]
        first, *gradients = passes.run(lambda loss: torch.autograd.grad(loss, inputs, allow_unused=True))
        length = float(_norm(gradients))
        if first is None or length == 0:
            return _require_gradient(first)
        ends: list[Tensor] = []
        for reach in (self.rho / length, -self.rho / length):
            weights = {
                name: param.detach() if gradient is None else param.detach() + reach * gradient
                for (name, param), gradient in zip(params.items(), gradients, strict=True)
            }
            ends.append(passes.run(passes.input_gradient, weights))
        return first + (ends[0] - ends[1]) / 2


@dataclass(frozen=True)
class _Passes:
    """Passes of a network that change nothing in it, each with the same random draws."""

    net: nn.Module
    loss_at: Callable[[Tensor], Tensor]
    values: Tensor

    def run(self, take: Callable[[Tensor], T], weights: Mapping[str, Tensor] | None = None) -> T:
        """Return ``take(loss)`` of one pass; every gradient is taken inside it, at the pass's own weights."""
        with torch.random.fork_rng([self.values.device] if self.values.is_cuda else []):
            return run_with_copies(self.net, lambda: take(self._loss()), weights)

    def input_gradient(self, loss: Tensor) -> Tensor:
        """Return the gradient in the values."""
        return _require_gradient(torch.autograd.grad(loss, self.values, allow_unused=True)[0])

    def _loss(self) -> Tensor:
        loss = self.loss_at(self.values)
        return loss if loss.requires_grad else _require_gradient(None)


def _require_gradient(gradient: Tensor | None) -> Tensor:
    if gradient is None:
        raise UsageError(
            "loss",
            got="no gradient in the network's input",
            expected="differentiable operations from the input to the loss",
            fix="remove detach(), item() or torch.no_grad() on the way",
        )
    return gradient


def _norm(gradients: Sequence[Tensor | None]) -> Tensor:
    """Return the norm of all together, in at least float32, with gradient 0 at 0."""
    norms = [
        torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))
        for gradient in gradients
        if gradient is not None
    ]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def _watch_hidden_functions(loss: Tensor) -> list[str]:
    """Return names of autograd functions without a second derivative; filled during backward.

    A backward pass that calls a kernel outside autograd returns tensors that look constant, one that is differentiable
    once returns tensors whose history is an error that ``autograd.grad`` never reaches. Without this check both would
    silently be missing in the second term.
    """
    hidden: list[str] = []

    def check(name: str, wanted: Sequence[bool], gradients: Sequence[Tensor | None], _: Any) -> None:
        given = [each for each, needed in zip(gradients, wanted, strict=True) if needed and each is not None]
        if not all(each.requires_grad and (each.grad_fn is None or each.grad_fn.name() != ERROR) for each in given):
            hidden.append(name.removesuffix("Backward"))

    waiting: list[Any] = [loss.grad_fn]
    seen = {None, *waiting}
    while waiting:
        node = waiting.pop()
        following = [each for each, _ in node.next_functions]
        if isinstance(node, BackwardCFunction):
            node.register_hook(partial(check, type(node).__name__, [each is not None for each in following]))
        waiting += {*following} - seen
        seen |= {*following}
    return hidden
