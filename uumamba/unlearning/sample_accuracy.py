"""Accuracy of a network on batches."""

import torch
from torch import Tensor, nn

from uumamba.runtime.errors import require
from uumamba.runtime.network import evaluating, finest_logits
from uumamba.runtime.options import Batches, check_options
from uumamba.unlearning.per_sample_loss import Predict, predict_batch, read_valid_classes


@check_options
def mean_accuracy(
    net: nn.Module, batches: Batches, *, predict: Predict = predict_batch, ignore_label: int | None = -100
) -> float:
    """Return the mean over samples of the share of correct positions.

    In evaluation mode; the network's modes are restored. A quality for forget and retain sets and for
    :func:`relearning_attack`.

    Args:
        net: the network.
        batches: batches for ``predict``.
        predict: ``predict(net, batch)`` returns logits and label.
        ignore_label: label of positions that do not count.

    Raises:
        UsageError: there is no batch, or a label is no class.

    Example:
        >>> mean_accuracy(nn.Identity(), [(torch.eye(2), torch.tensor([0, 0]))])
        0.5
    """
    found: list[Tensor] = []
    with evaluating(net):
        for batch in batches:
            outputs, label = predict(net, batch)
            logits = finest_logits(outputs)
            classes, valid = read_valid_classes(logits, label, ignore_label)
            found.append(mean_over_positions((logits.argmax(1) == classes).double(), valid).cpu())
    require(found, "batches", got="no batch", expected="at least one batch")
    return float(torch.cat(found).mean())


def mean_over_positions(values: Tensor, valid: Tensor) -> Tensor:
    """Average ``(batch, *positions)`` over the valid positions of each sample.

    Example:
        >>> mean_over_positions(torch.tensor([[1.0, 2.0]]), torch.tensor([[True, False]]))
        tensor([1.])
    """
    total = values.masked_fill(~valid, 0)[:, None].flatten(1).sum(1)
    return total / valid[:, None].flatten(1).sum(1)
