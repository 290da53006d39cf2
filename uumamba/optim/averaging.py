"""Gradients averaged over data-parallel ranks where the wrapper's own averaging cannot be used."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed import all_reduce, get_world_size
from torch.nn.parallel import DistributedDataParallel


@torch.no_grad()
def average_over_ranks(net: nn.Module | None, gradients: Sequence[Tensor]) -> None:
    """Replace gradients by their mean over the ranks of a wrapped network, in one message a kind of number.

    Every rank must hold gradients of the same parameters. Without a wrapper nothing is done.
    """
    if not isinstance(net, DistributedDataParallel):
        return
    for dtype in {gradient.dtype: None for gradient in gradients}:
        alike = [gradient for gradient in gradients if gradient.dtype == dtype]
        message = torch.cat([gradient.reshape(-1) for gradient in alike])
        all_reduce(message, group=net.process_group)
        message /= get_world_size(net.process_group)
        parts = message.split([gradient.numel() for gradient in alike])
        torch._foreach_copy_(alike, [part.view_as(gradient) for part, gradient in zip(parts, alike, strict=True)])


def average_what_the_wrapper_does_not(net: nn.Module | None, params: Sequence[Tensor]) -> None:
    """Average the gradients of parameters outside a wrapped network, such as learned loss weights.

    Without it each rank would learn weights of its own, and clip by a norm of its own.
    """
    if not isinstance(net, DistributedDataParallel):
        return
    inside = {id(param) for param in net.parameters()}
    average_over_ranks(net, [p.grad for p in params if p.grad is not None and id(p) not in inside])
