"""Norms, projections and gradients of lists of tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.distributed import all_reduce, get_world_size
from torch.nn.parallel import DistributedDataParallel

SMALL = 1024  # entries; copying a smaller tensor takes less time than starting a kernel on a CPU


def global_norm(tensors: Sequence[Tensor], *, join_small: bool = True) -> Tensor:
    """Euclidean norm over all entries of all tensors.

    The norm of an empty list is 0. An entry that is not finite makes the norm not finite, and so do finite entries
    whose squares overflow.

    Args:
        tensors: of any shapes, devices and floating-point types.
        join_small: concatenate small CPU tensors first, which takes half the time. If False, float32 norms are bit for
            bit the norms of torch's gradient clipping.

    Returns:
        A scalar tensor in float32, or in float64 if any tensor is float64.

    Example:
        >>> global_norm([torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])])
        tensor(5.)
    """
    if not tensors:
        return torch.zeros(())
    precision = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    small = [tensor for tensor in tensors if join_small and tensor.is_cpu and tensor.numel() <= SMALL]
    norms: list[Tensor] = []
    if len(small) < len(tensors):
        large = [tensor for tensor in tensors if not (join_small and tensor.is_cpu and tensor.numel() <= SMALL)]
        norms += torch._foreach_norm(large, 2, dtype=precision)
    if small:
        # A dot product adds in blocks, which is ten times as precise as torch's norm.
        joined = _flatten_dense_tensors(small).to(precision)
        norms.append(torch.dot(joined, joined).sqrt())
    if len(small) == len(tensors):
        return norms[0]
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))


def projection_factor(tensors: Sequence[Tensor], onto: Sequence[Tensor]) -> float:
    r"""Factor c for which c times ``onto`` is the projection of ``tensors``.

    .. math:: c = \langle a, b \rangle / \lVert b \rVert_2^2

    The factor is 0 if ``onto`` is 0. Products are computed one tensor at a time, without a third copy of all gradients,
    and accumulated in at least float32.

    Args:
        tensors: a, one tensor per parameter.
        onto: b, in the same shapes.

    Example:
        >>> projection_factor([torch.tensor([3.0, 7.0])], onto=[torch.tensor([2.0, 0.0])])
        1.5
    """
    if not tensors:
        return 0.0
    length = global_norm(onto)
    products = [(one * other).sum(dtype=length.dtype) for one, other in zip(tensors, onto, strict=True)]
    inner = torch.stack([product.to(length.device) for product in products]).sum()
    product, size = torch.stack([inner, length]).tolist()
    return float(product / size / size) if size != 0 else 0.0  # size * size could underflow to 0


def take_gradients(params: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the parameters' gradients and set them to None."""
    gradients = [param.grad for param in params]
    put_gradients(params, [None] * len(params))
    return gradients


def put_gradients(params: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Set the gradient of each parameter."""
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = gradient


def add_gradients(params: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Add each gradient to its parameter's gradient; None adds nothing."""
    held: list[Tensor] = []
    added: list[Tensor] = []
    for param, gradient in zip(params, gradients, strict=True):
        if param.grad is None:
            param.grad = gradient
        elif gradient is not None:
            held.append(param.grad)
            added.append(gradient)
    if held:
        torch._foreach_add_(held, added)


@torch.no_grad()
def average_over_ranks(net: nn.Module | None, gradients: Sequence[Tensor]) -> None:
    """Replace gradients by their mean over the ranks of a wrapped network.

    One all-reduce per floating-point type. Every rank must hold gradients of the same parameters. Without
    ``DistributedDataParallel`` around the network the gradients do not change.
    """
    if not isinstance(net, DistributedDataParallel):
        return
    for dtype in {gradient.dtype: None for gradient in gradients}:
        alike = [gradient for gradient in gradients if gradient.dtype == dtype]
        message = _flatten_dense_tensors(alike)
        all_reduce(message, group=net.process_group)
        message /= get_world_size(net.process_group)
        torch._foreach_copy_(alike, _unflatten_dense_tensors(message, alike))
