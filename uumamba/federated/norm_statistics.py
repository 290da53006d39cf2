"""Running statistics of a network after its weights were averaged."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from uumamba.runtime.errors import require
from uumamba.runtime.options import Batches, check_options
from uumamba.runtime.running_statistics import find_tracking_norms, restarted_statistics
from uumamba.runtime.seeds import preserve_random_state, seed_everything


@check_options
@torch.no_grad()
def recompute_statistics(
    net: nn.Module, batches: Batches, forward: Callable[[nn.Module, Any], object] | None = None
) -> None:
    """Recompute running statistics as means over batches, at the current weights.

    Averages of clients' statistics are not the statistics of averaged weights. Every batch counts the same. Weights,
    gradients, training mode and random states do not change; equal batches give equal statistics, also with dropout. A
    network without running statistics needs no batches.

    Args:
        net: the network.
        batches: some batches of training data, at least one.
        forward: runs the network on a batch, such as the objective; by default ``net(batch)``.

    Raises:
        UsageError: there are no batches.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> recompute_statistics(norm, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])
        >>> norm.running_mean
        tensor([4.])
    """
    norms = find_tracking_norms(net)
    if not norms:
        return
    was_training, count = {module: module.training for module in net.modules()}, 0
    try:
        net.train()
        with restarted_statistics(norms), preserve_random_state([next(net.parameters()).device]):
            seed_everything(0)
            for batch in batches:
                count += 1
                net(batch) if forward is None else forward(net, batch)
    finally:
        for module, mode in was_training.items():
            module.training = mode
    require(count > 0, "batches", got="no batch", expected="at least one, to recompute running statistics")
