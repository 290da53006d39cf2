"""Running statistics that a second look at the same batch must not move."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def frozen_running_statistics(net: nn.Module | None) -> Iterator[None]:
    """Run forward passes in the training mode of ``net`` and leave its running statistics as they were.

    Every module with a ``running_mean`` is covered: batch norms, synchronised ones, and instance norms that track.
    The values are kept and put back, so nesting is harmless, no flag can stay behind, ``momentum=None`` (a cumulative
    average) counts its batches right, and a batch that is not finite leaves no trace. ``None`` does nothing.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> with frozen_running_statistics(norm):
        ...     _ = norm(torch.tensor([[1.0], [3.0]]))
        >>> norm.running_mean, norm.num_batches_tracked
        (tensor([0.]), tensor(0))
    """
    kept = [] if net is None else [(module, name, value.clone()) for module, name, value in _statistics(net)]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, value in kept:
                getattr(module, name).copy_(value)


def running_statistics(net: nn.Module) -> list[Tensor]:
    """Every running mean and variance of a network and the counts of their batches, themselves and no copies."""
    return [value for _, _, value in _statistics(net)]


def _statistics(net: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for module in net.modules():
        if isinstance(getattr(module, "running_mean", None), Tensor):
            for name in STATISTICS:
                value = getattr(module, name, None)
                if isinstance(value, Tensor):
                    yield module, name, value
