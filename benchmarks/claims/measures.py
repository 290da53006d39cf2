"""Measures of a trained network: sharpness of its minimum and accuracy."""

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Loss = Callable[[nn.Module], Tensor]


def largest_eigenvalue(
    net: nn.Module, loss: Loss, *, iterations: int = 100, tolerance: float = 1e-3, seed: int = 0
) -> float:
    r"""Compute the eigenvalue of largest magnitude of the loss Hessian.

    The Hessian is that of ``loss(net)`` in the network's parameters. Power iteration :math:`v \leftarrow Hv / \lVert Hv
    \rVert` with products :math:`Hv` by a second backward pass, until :math:`v^\top H v` changes by less than
    ``tolerance`` of itself. It runs in the network's own precision: in float64 convolutions took three times as long,
    with the same six digits. The network is copied, in evaluation mode, and not changed.

    Args:
        net: the network.
        loss: function from a network to a scalar.
        iterations: largest number of products.
        tolerance: relative change that ends the iteration.
        seed: of the first direction.
    """
    net = deepcopy(net).eval()
    params = [param for param in net.parameters() if param.requires_grad]
    with torch.enable_grad():
        grads = torch.autograd.grad(loss(net), params, create_graph=True)
    generator = torch.Generator().manual_seed(seed)
    direction = _unit([torch.randn(param.shape, generator=generator, dtype=param.dtype) for param in params])
    found = 0.0
    for _ in range(iterations):
        product = torch.autograd.grad(grads, params, grad_outputs=direction, retain_graph=True)
        before, found = found, _dot(direction, product)
        if abs(found - before) <= tolerance * abs(found):
            break
        direction = _unit(product)
    return found


def largest_eigenvalue_by_differences(
    net: nn.Module, loss: Loss, *, step: float = 1e-2, iterations: int = 30, tolerance: float = 1e-2, seed: int = 0
) -> float:
    r"""Estimate the eigenvalue of largest magnitude without second derivatives.

    As :func:`largest_eigenvalue`, for networks with operators that have no second derivative, such as the native
    selective scan. Products are central differences of the gradient, :math:`Hv \approx \big(g(w + hv) - g(w - hv)\big)
    / 2h`.

    Args:
        net: the network; it is copied.
        loss: function from a network to a scalar.
        step: h, the distance along a unit vector.
        iterations: largest number of products.
        tolerance: relative change that ends the iteration.
        seed: of the first direction.
    """
    net = deepcopy(net).eval()
    params = [param for param in net.parameters() if param.requires_grad]
    weights = [param.data for param in params]
    generator = torch.Generator().manual_seed(seed)
    direction = _unit([torch.randn(param.shape, generator=generator) for param in params])
    found = 0.0
    for _ in range(iterations):
        ends = []
        for sign in (1.0, -1.0):
            torch._foreach_add_(weights, list(direction), alpha=sign * step)
            ends.append(torch.autograd.grad(loss(net), params, allow_unused=True, materialize_grads=True))
            torch._foreach_sub_(weights, list(direction), alpha=sign * step)
        product = [(ahead - behind) / (2 * step) for ahead, behind in zip(*ends, strict=True)]
        before, found = found, _dot(direction, product)
        if abs(found - before) <= tolerance * abs(found):
            break
        direction = _unit(product)
    return found


def surrogate_gap(net: nn.Module, loss: Loss, *, rho: float) -> float:
    r"""Compute the rise of the loss at distance ``rho`` along its gradient.

    The rise is :math:`L(w + \rho g / \lVert g \rVert) - L(w)`. The network is copied, in evaluation mode, and not
    changed.
    """
    net = deepcopy(net).eval()
    params: list[Tensor] = [param for param in net.parameters() if param.requires_grad]
    with torch.enable_grad():
        here = loss(net)
        direction = _unit(torch.autograd.grad(here, params))
    with torch.no_grad():
        torch._foreach_add_(params, list(direction), alpha=rho)
        return float(loss(net) - here)


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Compute the share of images whose most likely class is the label.

    The network must be in evaluation mode.
    """
    return float((net(images).argmax(1) == labels).double().mean())


@torch.no_grad()
def perplexity(net: nn.Module, tokens: Tensor, labels: Tensor) -> float:
    """Compute the exponential of the mean cross entropy per token.

    The logits are ``(batch, classes, length)``.
    """
    parts = zip(tokens.split(256), labels.split(256), strict=True)
    total = sum(float(F.cross_entropy(net(each), label, reduction="sum")) for each, label in parts)
    return float(torch.tensor(total / labels.numel(), dtype=torch.float64).exp())


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    return float(sum((a.double() * b).sum() for a, b in zip(left, right, strict=True)))


def _unit(vectors: Sequence[Tensor]) -> list[Tensor]:
    length = _dot(vectors, vectors) ** 0.5
    return [vector / max(length, torch.finfo(torch.float64).tiny) for vector in vectors]
