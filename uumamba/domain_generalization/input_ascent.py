"""Input gradient of a loss plus its weight-gradient norm."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from uumamba.domain_generalization.functional_pass import run_with_copies
from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.options import NonNegative, check_options

T = TypeVar("T")
SecondOrder = bool | Literal["finite_difference"]
ERROR = "torch::autograd::Error"
"""Name of torch's autograd node behind a gradient of a once-differentiable function."""


class InputAscent:
    r"""Input gradient of the loss plus rho times its gradient norm.

    .. math:: \frac{\partial}{\partial p} \Big( L(\theta, p) + \rho\, \lVert \nabla_\theta L(\theta, p) \rVert_2 \Big)
        = \frac{\partial L}{\partial p} + \rho\, \frac{\partial^2 L}{\partial p\, \partial \theta}\, u, \qquad
        u = \frac{\nabla_\theta L}{\lVert \nabla_\theta L \rVert_2}

    A second backward pass through the first backward pass gives the second term. The alternative is a finite difference
    between two perturbed weights, in three passes with less memory:

    .. math:: \frac{1}{2} \Big( \frac{\partial L}{\partial p}(\theta + \rho u)
        - \frac{\partial L}{\partial p}(\theta - \rho u) \Big)

    Kernels are checked in every pass. At the first kernel without a second derivative, or with a backward pass hidden
    from autograd, there is one warning, and finite differences are used from then on.

    Args:
        rho: weight of the gradient norm; 0 omits the norm.
        second_order: True for a second backward pass, ``"finite_difference"``, or False to omit the norm.

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

    @check_options
    def __init__(self, *, rho: NonNegative, second_order: SecondOrder = True) -> None:
        self.rho = rho
        self.second_order = second_order if rho else False

    def gradient(self, net: nn.Module, loss_at: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        """Compute the gradient at ``values``.

        Args:
            net: the bare network; the norm covers its trainable weights.
            loss_at: ``loss_at(values)`` returns the network's loss, a scalar. Called up to three times with the same
                random draws, also at perturbed weights.
            values: values of the perturbation.
        """
        params = {name: param for name, param in net.named_parameters() if param.requires_grad}
        require(params, "net", got="no trainable weight", expected="at least one weight with requires_grad=True")
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
            f"The network has no second derivative ({found}). UDIM uses finite differences from now on, three passes "
            'per perturbation. Set second_order="finite_difference" to avoid this warning.',
            stacklevel=2,
        )
        return difference

    def _differentiate_twice(self, passes: "_Passes", params: Mapping[str, Tensor], loss: Tensor) -> Tensor | str:
        """Return the gradient, or the reason for a missing second derivative."""
        hidden = _watch_hidden_functions(loss)
        try:
            gradients = torch.autograd.grad(loss, list(params.values()), create_graph=True, allow_unused=True)
            if hidden:
                return f"{hidden[0]} hides its backward pass"
            return passes.input_gradient(loss + self.rho * _norm(gradients))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # torch has no exception class for a missing derivative
            return str(error).splitlines()[0].rstrip(".")

    def _finite_difference(self, passes: "_Passes", params: Mapping[str, Tensor]) -> Tensor:
        """Compute the gradient from differences at a distance of rho.

        Rectifiers need a finite step. After 150 steps of a small U-Mamba with leaky ReLUs, the cosine to the gradient
        by two backward passes in float64 was 0.93 at the distance rho, 0.91 at rho / 10, 0.67 at rho / 100, and 0.78
        without the second term.
        """
        inputs = [passes.values, *params.values()]
        first, *gradients = passes.run(lambda loss: torch.autograd.grad(loss, inputs, allow_unused=True))
        length = float(_norm(gradients))
        if first is None or length == 0:
            return _require_gradient(first)
        ends: list[Tensor] = []
        for factor in (self.rho / length, -self.rho / length):
            weights = {
                name: param.detach() if gradient is None else param.detach() + factor * gradient
                for (name, param), gradient in zip(params.items(), gradients, strict=True)
            }
            ends.append(passes.run(passes.input_gradient, weights))
        return first + (ends[0] - ends[1]) / 2


@dataclass(frozen=True)
class _Passes:
    """Forward passes without side effects and with equal random draws."""

    net: nn.Module
    loss_at: Callable[[Tensor], Tensor]
    values: Tensor

    def run(self, take: Callable[[Tensor], T], weights: Mapping[str, Tensor] | None = None) -> T:
        """Return ``take(loss)`` of one pass.

        ``take`` computes all gradients, so that recomputed layers use the weights of this pass.
        """
        with torch.random.fork_rng([self.values.device] if self.values.is_cuda else []):
            return run_with_copies(self.net, lambda: take(self._loss()), weights)

    def input_gradient(self, loss: Tensor) -> Tensor:
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
            fix="remove detach(), item() or torch.no_grad() between input and loss",
        )
    return gradient


def _norm(gradients: Sequence[Tensor | None]) -> Tensor:
    """Return the norm of all gradients, in at least float32.

    The norm of 0 has the gradient 0.
    """
    norms = [
        torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))
        for gradient in gradients
        if gradient is not None
    ]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def _watch_hidden_functions(loss: Tensor) -> list[str]:
    """Return a list for names of autograd functions without second derivative.

    Hooks fill the list during the backward pass. A backward pass that calls a kernel outside autograd returns tensors
    that look constant. A backward pass that is differentiable once returns tensors with an error node that
    ``autograd.grad`` never reaches. Without this check both would silently be missing in the second term.
    """
    hidden: list[str] = []

    def check(name: str, wanted: Sequence[bool], gradients: Sequence[Tensor | None], _: Any) -> None:
        needed = [each for each, is_wanted in zip(gradients, wanted, strict=True) if is_wanted and each is not None]
        if not all(each.requires_grad and (each.grad_fn is None or each.grad_fn.name() != ERROR) for each in needed):
            hidden.append(name.removesuffix("Backward"))

    queue: list[Any] = [loss.grad_fn]
    visited = {None, *queue}
    while queue:
        node = queue.pop()
        parents = [each for each, _ in node.next_functions]
        if isinstance(node, BackwardCFunction):
            node.register_hook(partial(check, type(node).__name__, [each is not None for each in parents]))
        queue += {*parents} - visited
        visited |= {*parents}
    return hidden
