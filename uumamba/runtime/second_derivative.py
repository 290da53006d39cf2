"""Joint norm of gradients, and kernels without a second derivative."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

ERROR = "torch::autograd::Error"
"""Name of torch's autograd node behind a gradient of a once-differentiable function."""


def joint_norm(gradients: Sequence[Tensor | None]) -> Tensor:
    """Return the norm of all gradients, in at least float32.

    The norm of 0 has the gradient 0.

    Example:
        >>> joint_norm([torch.tensor([3.0]), None, torch.tensor([[4.0]])])
        tensor(5.)
    """
    norms = [
        torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))
        for gradient in gradients
        if gradient is not None
    ]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def watch_hidden_functions(loss: Tensor) -> list[str]:
    """Return a list for names of autograd functions without second derivative.

    Hooks fill the list during the backward pass. A backward pass that calls a kernel outside autograd returns tensors
    that look constant. A backward pass that is differentiable once returns tensors with an error node that
    ``autograd.grad`` never reaches. Without this check both would silently be missing in the second term.

    Example:
        >>> class Doubled(torch.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         return 2 * x
        ...     @staticmethod
        ...     @torch.no_grad()
        ...     def backward(ctx, grad):
        ...         return 2 * grad
        >>> x = torch.ones(1, requires_grad=True)
        >>> loss = Doubled.apply(x).square().sum()
        >>> hidden = watch_hidden_functions(loss)
        >>> gradients = torch.autograd.grad(loss, x, create_graph=True)
        >>> hidden
        ['Doubled']
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
