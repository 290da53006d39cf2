"""Losses of each sample of a batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.runtime.batch_parts import read_pair
from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.network import bare_network, evaluating, finest_logits, read_classes
from uumamba.runtime.options import Batches, check_options

Predict = Callable[[nn.Module, Any], tuple[Any, Tensor]]
"""``predict(net, batch) -> (logits, label)``."""

PerSampleLoss = Callable[[Any, Tensor], Tensor]
"""``per_sample_loss(logits, label) -> (batch,)``."""


def predict_batch(net: nn.Module, batch: Any) -> tuple[Any, Tensor]:
    """Return the network's output and the label of a batch.

    Tensors are moved to the network's device. For another layout, pass your own ``predict(net, batch)`` to the losses
    and attacks of this package. A language model of logits ``(batch, tokens, vocabulary)`` needs
    ``lambda net, batch: (net(batch["tokens"])[:, :-1].mT, batch["tokens"][:, 1:])``.

    Args:
        net: the network.
        batch: a mapping with ``image`` and ``label``, or a pair ``(input, label)``.

    Raises:
        UsageError: the batch has another layout.

    Example:
        >>> predict_batch(nn.Identity(), {"image": torch.zeros(1, 2), "label": torch.tensor([1])})
        (tensor([[0., 0.]]), tensor([1]))
    """
    inputs, label = read_pair(batch, fix="pass predict=, a function of net and batch that returns logits and label")
    tensor = next(bare_network(net).parameters(), None)
    if tensor is not None:
        inputs, label = (each.to(tensor.device) if isinstance(each, Tensor) else each for each in (inputs, label))
    return net(inputs), label


def per_sample_cross_entropy(logits: Any, label: Tensor, *, ignore_label: int | None = -100) -> Tensor:
    r"""Mean cross entropy of each sample over its valid positions.

    .. math:: L_i = -\frac{1}{|V_i|} \sum_{v \in V_i} \log p_{i, y_{iv}, v}

    A sample is an image, a sequence or a volume, and its positions are one class, tokens or voxels. Classes are on axis
    1, as in torch: logits ``(batch, tokens, vocabulary)`` of a language model are passed as ``logits.mT``. Under deep
    supervision the finest logits count. Computed in at least float32.

    Args:
        logits: ``(batch, classes, *positions)``, or a list of them, finest first.
        label: class numbers ``(batch, *positions)`` or ``(batch, 1, *positions)``.
        ignore_label: label of positions that do not count.

    Returns:
        ``(batch,)``.

    Raises:
        UsageError: the shapes do not fit, a label is no class, or a sample has no valid position, so no loss.

    Example:
        >>> tokens = torch.tensor([[0, 1, -100], [2, 2, 2]])
        >>> per_sample_cross_entropy(torch.zeros(2, 4, 3), tokens)  # ln 4
        tensor([1.3863, 1.3863])
    """
    logits = finest_logits(logits)
    classes, valid = read_valid_classes(logits, label, ignore_label)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits, classes, reduction="none")
    return losses.masked_fill(~valid, 0)[:, None].flatten(1).sum(1) / valid[:, None].flatten(1).sum(1)


def read_valid_classes(logits: Tensor, label: Tensor, ignore_label: int | None) -> tuple[Tensor, Tensor]:
    """Return classes ``(batch, *positions)`` and the mask of valid positions.

    Args:
        logits: ``(batch, classes, *positions)``.
        label: as for :func:`per_sample_cross_entropy`.
        ignore_label: label of positions that are not valid; their class is 0.

    Raises:
        UsageError: as for :func:`per_sample_cross_entropy`.

    Example:
        >>> read_valid_classes(torch.zeros(1, 3, 2), torch.tensor([[2, -100]]), -100)
        (tensor([[2, 0]]), tensor([[ True, False]]))
    """
    expected = (len(logits), *logits.shape[2:])
    if label.shape == (len(logits), 1, *logits.shape[2:]) and logits.ndim == label.ndim:
        label = label[:, 0]
    require(
        label.shape == expected and not label.is_floating_point(),
        "label",
        got=f"{label.dtype} of shape {tuple(label.shape)}",
        expected=f"class numbers of shape {expected} for logits of shape {tuple(logits.shape)}",
        fix="move the classes to axis 1 of the logits, such as logits.mT for (batch, tokens, vocabulary)",
    )
    classes, valid = read_classes(label, ignore_label)
    is_wrong = (classes < 0) | (classes >= logits.shape[1])
    is_empty = ~valid[:, None].flatten(1).any(1)
    if bool(is_wrong.any() | is_empty.any()):  # a single wait for the device
        require(
            not is_wrong.any(),
            "label",
            got=f"class {classes[is_wrong][0].item()}" if is_wrong.any() else "",
            expected=f"0 to {logits.shape[1] - 1}, or {ignore_label} for positions that do not count",
        )
        raise UsageError(
            "label",
            got=f"no valid position in sample {int(is_empty.nonzero()[0])}",
            expected="at least one position per sample",
            fix="leave such samples out of the batch",
        )
    return classes, valid


class MeanLoss:
    r"""Mean loss of the samples of a batch, an objective.

    .. math:: L = \frac{1}{B} \sum_i L_i

    Every sample counts equally, however many tokens or voxels it has.

    Args:
        per_sample_loss: ``per_sample_loss(logits, label)`` returns ``(batch,)``.
        predict: ``predict(net, batch)`` returns logits and label.

    Example:
        >>> MeanLoss()(nn.Identity(), (torch.zeros(3, 2), torch.tensor([0, 1, 1])))  # ln 2
        tensor(0.6931)
    """

    @check_options
    def __init__(
        self, per_sample_loss: PerSampleLoss = per_sample_cross_entropy, *, predict: Predict = predict_batch
    ) -> None:
        self.per_sample_loss, self.predict = per_sample_loss, predict

    def per_sample(self, net: nn.Module, batch: Any) -> Tensor:
        """Return the losses ``(batch,)``."""
        return self.with_outputs(net, batch)[0]

    def with_outputs(self, net: nn.Module, batch: Any) -> tuple[Tensor, tuple[Any, Tensor]]:
        """Return the losses ``(batch,)`` and ``(logits, label)``.

        Raises:
            UsageError: the batch is empty, or the loss has another shape.
        """
        outputs = self.predict(net, batch)
        losses = self.per_sample_loss(*outputs)
        require(
            isinstance(losses, Tensor) and losses.ndim == 1 and len(losses),
            "per_sample_loss",
            got=f"a tensor of shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__,
            expected="one loss per sample, (batch,), of at least one sample",
        )
        return losses, outputs

    def __call__(self, net: nn.Module, batch: Any) -> Tensor:
        """Return the mean loss of a batch."""
        return self.per_sample(net, batch).mean()


@check_options
def collect_losses(
    net: nn.Module,
    batches: Batches,
    *,
    per_sample_loss: PerSampleLoss = per_sample_cross_entropy,
    predict: Predict = predict_batch,
) -> Tensor:
    """Return the loss of every sample in evaluation mode, without gradient.

    The network's modes are restored. These losses are the input of :func:`attack_by_loss`.

    Args:
        net: the network.
        batches: batches for ``predict``.
        per_sample_loss: as for :class:`MeanLoss`.
        predict: as for :class:`MeanLoss`.

    Returns:
        ``(samples,)`` on the CPU.

    Raises:
        UsageError: there is no batch.

    Example:
        >>> collect_losses(nn.Identity(), [(torch.zeros(2, 2), torch.tensor([0, 1]))])
        tensor([0.6931, 0.6931])
    """
    loss = MeanLoss(per_sample_loss, predict=predict)
    with evaluating(net):
        found = [loss.per_sample(net, batch).cpu() for batch in batches]
    require(found, "batches", got="no batch", expected="at least one batch")
    return torch.cat(found)
