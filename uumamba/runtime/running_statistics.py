"""Running statistics of norm layers as means over chosen batches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def find_tracking_norms(net: nn.Module) -> list[_NormBase]:
    """Return the norm layers that track running means and variances.

    Example:
        >>> find_tracking_norms(nn.Sequential(nn.BatchNorm1d(1), nn.InstanceNorm1d(1)))
        [BatchNorm1d(1, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)]
    """
    return [each for each in net.modules() if isinstance(each, _NormBase) and each.running_mean is not None]


@contextmanager
def restarted_statistics(norms: Sequence[_NormBase]) -> Iterator[None]:
    """Restart running statistics as means over the batches of a block.

    Every batch counts the same. After an error, and in a layer without a batch, the old statistics are restored.

    Args:
        norms: layers that track running statistics, in training mode in the block.

    Example:
        >>> import torch
        >>> norm = nn.BatchNorm1d(1)
        >>> with restarted_statistics([norm]):
        ...     _ = norm(torch.tensor([[1.0], [3.0]])), norm(torch.tensor([[5.0], [7.0]]))
        >>> norm.running_mean, norm.momentum
        (tensor([4.]), 0.1)
    """
    kept = [(norm, norm.momentum, {name: value.clone() for name, value in norm.named_buffers()}) for norm in norms]
    is_complete = False
    try:
        for norm in norms:
            norm.momentum = None  # a cumulative mean
            norm.reset_running_stats()
        yield
        is_complete = True
    finally:
        for norm, momentum, buffers in kept:
            norm.momentum = momentum
            if not is_complete or not norm.num_batches_tracked:
                for name, value in buffers.items():
                    norm.get_buffer(name).copy_(value)
