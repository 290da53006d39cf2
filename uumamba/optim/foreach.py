"""Arithmetic on lists of tensors in a few kernels, whatever their number."""

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors

SMALL = 1024  # entries of a tensor that is copied in less time than its own kernel takes to start on a processor


def global_norm(tensors: Sequence[Tensor], *, join_small: bool = True) -> Tensor:
    """Euclidean norm of all entries of all tensors together, 0 for none; a scalar tensor, in at least float32.

    An entry that is not finite makes it not finite, and so do finite entries whose squares overflow. Small tensors on a
    processor are joined first, which takes half the time; without it float32 norms are bit for bit those that torch
    clips by.

    Example:
        >>> global_norm([torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])])
        tensor(5.)
    """
    if not tensors:
        return torch.zeros(())
    precision = torch.float64 if torch.float64 in set(map(attrgetter("dtype"), tensors)) else torch.float32
    small = [tensor for tensor in tensors if tensor.numel() <= SMALL and tensor.is_cpu] if join_small else []
    if len(small) == len(tensors):
        return _norm_of_joined(small, precision)
    large = [tensor for tensor in tensors if tensor.numel() > SMALL or not tensor.is_cpu] if small else list(tensors)
    norms = [*torch._foreach_norm(large, 2, dtype=precision), *([_norm_of_joined(small, precision)] if small else [])]
    if len(set(map(attrgetter("device"), norms))) > 1:
        norms = [norm.to(norms[0].device) for norm in norms]
    return torch.linalg.vector_norm(torch.stack(norms))


def _norm_of_joined(tensors: Sequence[Tensor], precision: torch.dtype) -> Tensor:
    """One copy and one kernel; a dot product, whose sum in blocks is ten times as precise as that of torch's norm."""
    joined = _flatten_dense_tensors(tensors).to(precision)
    return torch.dot(joined, joined).sqrt()


def take_gradients(params: Sequence[Tensor]) -> list[Tensor | None]:
    """The parameters' gradients, which they no longer hold: the next backward pass starts from none."""
    gradients = [param.grad for param in params]
    for param in params:
        param.grad = None
    return gradients


def own_gradients(net: nn.Module | None, gradients: list[Tensor | None]) -> list[Tensor | None]:
    """Gradients that the next backward pass does not overwrite, as views of a data-parallel wrapper's buckets are."""
    if not getattr(net, "gradient_as_bucket_view", False):
        return gradients
    return [None if gradient is None else gradient.clone() for gradient in gradients]


def put_gradients(params: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Make each gradient its parameter's."""
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = gradient


def add_gradients(params: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Add each gradient to its parameter's, where there is one."""
    both: tuple[list[Tensor], list[Tensor]] = ([], [])
    for param, gradient in zip(params, gradients, strict=True):
        if param.grad is None:
            param.grad = gradient
        elif gradient is not None:
            both[0].append(param.grad)
            both[1].append(gradient)
    if both[0]:
        torch._foreach_add_(*both)
