"""Channels-last memory layout in 2-D and 3-D."""

import torch
from torch import Tensor, nn

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def to_channels_last(tensor: Tensor) -> Tensor:
    """Return a tensor with its second axis innermost in memory; unchanged unless it has two or three spatial axes.

    Example:
        >>> to_channels_last(torch.zeros(1, 2, 3, 4)).stride()
        (24, 1, 8, 2)
    """
    if tensor.ndim not in _FORMATS:
        return tensor
    return tensor.contiguous(memory_format=_FORMATS[tensor.ndim])


def lay_channels_last(net: nn.Module) -> None:
    """Store convolution weights channels-last, so that feature maps are too; parameters stay the same objects."""
    for parameter in net.parameters():
        parameter.data = to_channels_last(parameter.data)
