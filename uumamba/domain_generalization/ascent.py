"""The gradient of a loss and of its slope, with respect to what an input was changed by."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor

SecondOrder = bool | Literal["finite_difference"]
LossAt = Callable[[Mapping[str, Tensor] | None, Tensor], Tensor]
"""``loss_at(weights, values)``: the loss of inputs changed by the values, at other weights unless None."""

STEP = 0.1
"""Of finite differences, in units of rho: rounding is multiplied by 10, curvature seen over a tenth of the radius."""


class Ascent:
    r"""The direction in which samples lie whose loss, and the sharpness of whose loss, is higher.

    .. math:: \frac{\partial}{\partial p} \Big( L(\theta, p) + \rho\, \lVert \nabla_\theta L(\theta, p) \rVert_2 \Big)
        = \frac{\partial L}{\partial p} + \rho\, \frac{\partial^2 L}{\partial p\, \partial \theta}\, u, \qquad
        u = \frac{\nabla_\theta L}{\lVert \nabla_\theta L \rVert_2}

    The second term is had by a second backward pass through the first, or without one as

    .. math:: \frac{\rho}{2 h} \Big( \frac{\partial L}{\partial p}(\theta + h u)
        - \frac{\partial L}{\partial p}(\theta - h u) \Big), \qquad h = \rho / 10

    in three passes of less memory. Where a kernel refuses a second derivative, or answers with a wrong one because its
    backward pass is opaque to autograd, a warning says so once and differences are taken from then on. A wrong answer
    is looked for at the first call, and only where the graph holds a custom function; kinks (of a ReLU, say) are no
    reason, as the comparison is of directions.

    Args:
        rho: weight of the slope's length; 0 leaves it out.
        second_order: True by a second backward pass, ``"finite_difference"``, or False for the gradient of the loss
            alone.

    Raises:
        ValueError: from the constructor, for a negative rho or an unknown way.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor(3.0))
        >>> ascent = Ascent(rho=0.5)
        >>> # L = w^2 (1 + p), dL/dw = 2 w (1 + p): at p = 0 both terms give 9 and 0.5 * 6
        >>> loss = lambda weights, p: (weights or {"w": weight})["w"] ** 2 * (1 + p).sum()
        >>> ascent.gradient(loss, {"w": weight}, torch.zeros(1))
        tensor([12.])
    """

    def __init__(self, *, rho: float, second_order: SecondOrder = True) -> None:
        if not rho >= 0:
            raise ValueError(f"rho must not be negative, got {rho}")
        if second_order not in (True, False, "finite_difference"):
            raise ValueError(f'second_order must be True, False or "finite_difference", got {second_order!r}')
        self.rho = rho
        self.second_order = second_order if rho else False
        self.compared = False

    def gradient(self, loss_at: LossAt, params: Mapping[str, Tensor], values: Tensor) -> Tensor:
        """In the values, at these values.

        Args:
            loss_at: a scalar; called up to three times, with the same random draws where it makes any.
            params: the network's parameters by name, without those that do not learn.
            values: what the input is changed by.
        """
        values = values.detach().requires_grad_()
        with torch.enable_grad():
            if self.second_order is False:
                return torch.autograd.grad(loss_at(None, values), values)[0]
            if self.second_order == "finite_difference":
                return self._by_differences(loss_at, params, values)
            return self._exact(loss_at, params, values)

    def _exact(self, loss_at: LossAt, params: Mapping[str, Tensor], values: Tensor) -> Tensor:
        with _same_draws(values):
            loss = loss_at(None, values)
        opaque = not self.compared and _has_custom_function(loss)
        slopes = torch.autograd.grad(loss, list(params.values()), create_graph=True, allow_unused=True)
        try:
            (found,) = torch.autograd.grad(loss + self.rho * _length(slopes), values, retain_graph=opaque)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            return self._fall_back(str(error).splitlines()[0], loss_at, params, values)
        self.compared = True
        if opaque:
            (first,) = torch.autograd.grad(loss, values)
            differences = self._by_differences(loss_at, params, values)
            agreement = _cosine(found - first, differences - first)
            if agreement < 0.5:
                return self._fall_back(
                    f"its angle to finite differences has a cosine of {agreement:.2f}", loss_at, params, values
                )
        return found

    def _fall_back(self, why: str, loss_at: LossAt, params: Mapping[str, Tensor], values: Tensor) -> Tensor:
        self.second_order = "finite_difference"
        warnings.warn(
            f"The network has no usable second derivative ({why}); UDIM takes finite differences of its gradient from "
            "here on, at three passes a perturbation.",
            stacklevel=2,
        )
        return self._by_differences(loss_at, params, values)

    def _by_differences(self, loss_at: LossAt, params: Mapping[str, Tensor], values: Tensor) -> Tensor:
        with _same_draws(values):
            loss = loss_at(None, values)
        first, *slopes = torch.autograd.grad(loss, [values, *params.values()], allow_unused=True)
        del loss
        length = float(_length(slopes))
        if first is None or length == 0 or not length < float("inf"):
            return torch.zeros_like(values) if first is None else first
        sides: list[Tensor] = []
        for sign in (1, -1):
            factor = sign * STEP * self.rho / length
            weights = {
                name: param if slope is None else (param.detach() + factor * slope)
                for (name, param), slope in zip(params.items(), slopes, strict=True)
            }
            with _same_draws(values):
                sides += torch.autograd.grad(loss_at(weights, values), values)
        return first + (sides[0] - sides[1]) / (2 * STEP)


def _length(slopes: Sequence[Tensor | None]) -> Tensor:
    """The norm of all together, in at least float32, with gradient 0 at 0."""
    norms = [
        torch.linalg.vector_norm(slope, dtype=torch.promote_types(slope.dtype, torch.float32))
        for slope in slopes
        if slope is not None
    ]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def _cosine(one: Tensor, other: Tensor) -> float:
    """1 where either is 0."""
    product = torch.linalg.vector_norm(one) * torch.linalg.vector_norm(other)
    return float((one * other).sum() / product) if product > 0 else 1.0


def _has_custom_function(loss: Tensor) -> bool:
    """Whether a backward pass of a Python ``autograd.Function`` or of a registered operator is in the graph."""
    return any(isinstance(node, torch.autograd.function.BackwardCFunction) for node in _nodes(loss))


def _nodes(loss: Tensor) -> Iterator[object]:
    seen, found = set(), [loss.grad_fn]
    while found:
        node = found.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        found += [each for each, _ in node.next_functions]


def _same_draws(values: Tensor) -> AbstractContextManager[object]:
    """Two passes under this, one after the other, have the same dropout."""
    return torch.random.fork_rng([values.device] if values.is_cuda else [])
