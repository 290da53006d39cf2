"""Networks within wrappers of torch's, which add a prefix to every name of their state."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def bare(net: nn.Module) -> nn.Module:
    """The network without wrappers for data-parallel training and compilation, in whatever order they stand.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> bare(net) is net
        True
    """
    while True:
        inner = net.module if isinstance(net, DistributedDataParallel) else getattr(net, "_orig_mod", None)
        if inner is None:
            return net
        net = inner
