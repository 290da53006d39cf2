"""Channels-last memory layout in 2-D and 3-D."""

import torch
from torch import Tensor, nn

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def to_channels_last(tensor: Tensor) -> Tensor:
    """Return a tensor in channels-last memory layout.

    The second axis becomes the innermost. A tensor without two or three spatial axes is returned unchanged.

    Example:
        >>> to_channels_last(torch.zeros(1, 2, 3, 4)).stride()
        (24, 1, 8, 2)
    """
    if tensor.ndim not in _FORMATS:
        return tensor
    laid = tensor.contiguous(memory_format=_FORMATS[tensor.ndim])
    if tensor.shape[1] > 1:
        return laid
    # One channel has both layouts, and torch would continue in channels first unless its stride says otherwise.
    return laid.as_strided(laid.shape, torch.empty_like(laid, memory_format=_FORMATS[tensor.ndim]).stride())


def lay_channels_last(net: nn.Module) -> None:
    """Store a network's convolution weights in channels-last layout.

    Feature maps then have the same layout. The parameters stay the same objects.
    """
    for parameter in net.parameters():
        parameter.data = to_channels_last(parameter.data)
