"""Losses and derivatives of a network at its weights and near them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.functional_pass import copied_buffers
from uumamba.runtime.network import bare_network
from uumamba.runtime.second_derivative import joint_norm, watch_hidden_functions

Gradients = Sequence[Tensor | None]
SecondOrder = Literal["exact", "finite_difference"]


class WeightPasses:
    """Passes of one loss at several weights, with equal random draws.

    No pass changes weights or buffers. The first pass advances torch's generators as a normal pass does; later ones
    repeat its draws, so that dropout makes no difference between them. Frozen parameters take no part.

    Args:
        net: the network, not inside ``DistributedDataParallel``.
        loss: the loss of one batch as a function of the network.

    Raises:
        UsageError: no parameter is trainable, or the network is data-parallel.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(net.weight, 3.0)
        >>> passes = WeightPasses(net, lambda net: (net.weight**3).sum())
        >>> passes.differentiate([torch.ones(1, 1)])  # 4^3 and 3 * 4^2
        (tensor(64.), [tensor([[48.]])])
        >>> passes.multiply_hessian(lambda gradients: [torch.ones(1, 1)])[2]  # 6 * 3
        [tensor([[18.]])]
    """

    def __init__(self, net: nn.Module, loss: Callable[[nn.Module], Tensor]) -> None:
        require(
            not isinstance(net, DistributedDataParallel),
            "net",
            got="DistributedDataParallel",
            expected="a network in one process",
            fix="leave smoothing out, or use an optimizer such as SAM",
        )
        self.net, self.loss = bare_network(net), loss
        self.params = {name: param for name, param in self.net.named_parameters() if param.requires_grad}
        require(self.params, "net", got="no trainable parameter", expected="at least one with requires_grad=True")
        self._states: list[tuple[torch.device, Tensor]] = []

    def differentiate(self, offsets: Gradients | None = None) -> tuple[Tensor, list[Tensor | None]]:
        """Return the loss and its gradient at the weights plus offsets."""
        with self._open(offsets) as weights:
            value = self._compute()
            return value.detach(), list(torch.autograd.grad(value, weights, allow_unused=True))

    def multiply_hessian(
        self, choose: Callable[[Gradients], Gradients], offsets: Gradients | None = None
    ) -> tuple[Tensor, list[Tensor | None], list[Tensor | None]]:
        """Return loss, gradient, and the Hessian times a direction.

        Args:
            choose: returns the direction, given the gradient.
            offsets: added to the weights.

        Raises:
            UsageError: a kernel has no second derivative, or hides its backward pass from autograd.
        """
        # Fused attention has no second derivative.
        with sdpa_kernel(SDPBackend.MATH), self._open(offsets) as weights:
            value = self._compute()
            hidden = watch_hidden_functions(value)
            gradients = _differentiate_again(value, weights, create_graph=True)
            _require_visible(not hidden, f"{', '.join(hidden)} hides its backward pass")
            values = [None if gradient is None else gradient.detach() for gradient in gradients]
            product = _dot(gradients, choose(values))
            if product is None or not product.requires_grad:  # a loss linear in the weights
                return value.detach(), values, [None] * len(weights)
            return value.detach(), values, list(_differentiate_again(product, weights))

    def difference_hessian(
        self, direction: Gradients, gradients: Gradients, offsets: Gradients | None = None, *, radius: float
    ) -> list[Tensor | None]:
        r"""Approximate the Hessian times a direction by one more gradient.

        .. math:: H u \approx \frac{g(w + r u) - g(w)}{r}, \qquad r = \mathrm{radius} \cdot \lVert w \rVert_2

        Args:
            direction: u.
            gradients: g at the weights plus offsets.
            offsets: added to the weights.
            radius: relative distance; it is absolute if all weights are 0.

        Raises:
            UsageError: weights are less precise than float32, in which the difference is lost in rounding.
        """
        params = [*self.params.values()]
        precise = all(torch.finfo(param.dtype).bits >= 32 for param in params)
        require(
            precise,
            "second_order",
            got="finite_difference with half-precision weights",
            expected="weights in float32 or float64",
            fix='set second_order="exact", or call net.float()',
        )
        length = radius * (float(joint_norm([param.detach() for param in params])) or 1.0)
        _, further = self.differentiate(add_scaled(offsets or [None] * len(params), direction, length))
        return scale(add_scaled(further, gradients, -1), 1 / length)

    def as_scalar(self, value: Tensor, gradients: Gradients) -> Tensor:
        """Return the value as a scalar whose backward pass gives these gradients."""
        return _WithGradients.apply(value, gradients, *self.params.values())  # type: ignore[no-untyped-call]

    def _compute(self) -> Tensor:
        value = self.loss(self.net)
        require(
            isinstance(value, Tensor) and value.numel() == 1 and value.requires_grad,
            "forget_loss",
            got=f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__,
            expected="a scalar with a gradient in the network's trainable parameters",
        )
        return value

    @contextmanager
    def _open(self, offsets: Gradients | None) -> Iterator[list[Tensor]]:
        """Put copies of the weights into the network, and repeat earlier draws.

        Gradients are computed in the block, so that recomputed layers use the weights of this pass.
        """
        params = [param.detach() for param in self.params.values()]
        shifted = add_scaled(params, offsets or [None] * len(params), 1)
        weights = [weight.detach().requires_grad_() for weight in shifted if weight is not None]
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(copied_buffers(self.net, dict(zip(self.params, weights, strict=True))))
            if self._states:
                self._repeat_draws(stack)
            else:
                self._record_draws()
            yield weights

    def _record_draws(self) -> None:
        devices = {param.device for param in self.params.values() if param.is_cuda}
        self._states = [(torch.device("cpu"), torch.get_rng_state())]
        self._states += [(device, torch.cuda.get_rng_state(device)) for device in devices]

    def _repeat_draws(self, stack: ExitStack) -> None:
        stack.enter_context(torch.random.fork_rng([device for device, _ in self._states[1:]]))
        torch.set_rng_state(self._states[0][1])
        for device, state in self._states[1:]:
            torch.cuda.set_rng_state(state, device)


class _WithGradients(Function):
    """Value with gradients that were computed before."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Gradients, *params: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, None, *(None if each is None else (grad * each).to(each.dtype) for each in ctx.gradients)


def unit(gradients: Gradients) -> tuple[Tensor, list[Tensor | None]]:
    """Return the joint norm, and the gradients divided by it.

    Gradients of 0 stay 0.

    Example:
        >>> unit([torch.tensor([3.0, 4.0]), None])
        (tensor(5.), [tensor([0.6000, 0.8000]), None])
    """
    norm = joint_norm(gradients)
    floor = norm.clamp(min=torch.finfo(norm.dtype).tiny)
    return norm, [None if each is None else (each / floor.to(each.device)).to(each.dtype) for each in gradients]


def add_scaled(first: Gradients, second: Gradients, factor: float) -> list[Tensor | None]:
    """Return ``first + factor * second``; None counts as 0.

    Example:
        >>> add_scaled([torch.ones(1), None], [torch.ones(1), None], 2.0)
        [tensor([3.]), None]
    """
    return [
        a if b is None else factor * b if a is None else torch.add(a, b, alpha=factor)
        for a, b in zip(first, second, strict=True)
    ]


def scale(gradients: Gradients, factor: float) -> list[Tensor | None]:
    """Return ``factor * gradients``; None stays None.

    Example:
        >>> scale([torch.ones(1), None], 2.0)
        [tensor([2.]), None]
    """
    return [None if each is None else factor * each for each in gradients]


def _dot(first: Gradients, second: Gradients) -> Tensor | None:
    products = [(a * b).sum() for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return torch.stack(products).sum() if products else None


def _differentiate_again(value: Tensor, weights: Sequence[Tensor], **options: Any) -> tuple[Tensor | None, ...]:
    try:
        return torch.autograd.grad(value, weights, allow_unused=True, **options)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # torch has no exception class for a missing derivative
        return _require_visible(False, str(error).splitlines()[0].split(". ")[0].rstrip("."))


def _require_visible(condition: bool, reason: str) -> Any:
    if not condition:
        raise UsageError(
            "second_order",
            got=reason,
            expected="operations with a second derivative",
            fix='set second_order="finite_difference"',
        )
