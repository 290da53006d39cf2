"""Running statistics of batch norms, computed again from chosen batches."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from uumamba.runtime.network import bare_network
from uumamba.runtime.options import Batches, check_options
from uumamba.runtime.running_statistics import find_tracking_norms, restarted_statistics
from uumamba.unlearning.per_sample_loss import Predict, predict_batch


def find_trained_norms(net: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms in training mode that track statistics.

    Example:
        >>> find_trained_norms(nn.Sequential(nn.BatchNorm1d(1), nn.BatchNorm1d(1).eval()))
        [BatchNorm1d(1, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)]
    """
    norms = find_tracking_norms(bare_network(net))
    return [norm for norm in norms if norm.training and isinstance(norm, _BatchNorm)]


@check_options
@torch.no_grad()
def renew_statistics(net: nn.Module, batches: Batches, *, predict: Predict = predict_batch) -> None:
    """Compute running statistics of batch norms again, as the mean over batches.

    Only batch norms in training mode change. Nothing of samples outside the batches is left in them. Without a batch
    the statistics stay, and an error in a pass restores them.

    Args:
        net: the network.
        batches: batches of samples to retain.
        predict: ``predict(net, batch)`` runs a batch through the network.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(1))
        >>> renew_statistics(net, [(torch.tensor([[1.0], [3.0]]), torch.zeros(2))])
        >>> net[0].running_mean
        tensor([2.])
    """
    norms = find_trained_norms(net)
    with restarted_statistics(norms):
        for batch in batches if norms else ():
            predict(net, batch)
