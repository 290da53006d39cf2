"""Per-sample loss of label maps with small structures."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from uumamba.runtime.network import finest_logits
from uumamba.unlearning.per_sample_loss import read_valid_classes


def per_sample_balanced_cross_entropy(logits: Any, label: Tensor, *, ignore_label: int | None = -100) -> Tensor:
    r"""Mean cross entropy of each sample in which classes count equally.

    .. math:: L_i = \frac{1}{|C_i|} \sum_{c \in C_i} \frac{1}{|V_{ic}|} \sum_{v \in V_{ic}} -\log p_{i, c, v}

    with :math:`C_i` the classes in the label and :math:`V_{ic}` their valid voxels. A small structure counts as much as
    the background, which a plain mean would hide. Computed in at least float32.

    Args:
        logits: ``(batch, classes, *spatial)``, or a list of them, finest first.
        label: class numbers ``(batch, *spatial)`` or ``(batch, 1, *spatial)``.
        ignore_label: label of voxels that do not count.

    Returns:
        ``(batch,)``.

    Raises:
        UsageError: as from :func:`per_sample_cross_entropy`.

    Example:
        >>> logits = torch.tensor([[[0.0, 0.0, 0.0, 9.0], [0.0, 0.0, 0.0, 9.0]]])
        >>> per_sample_balanced_cross_entropy(logits, torch.tensor([[0, 0, 0, 1]]))  # ln 2 for both classes
        tensor([0.6931])
    """
    means, present = class_means(logits, label, ignore_label=ignore_label)
    return means.sum(1) / present.sum(1)


def class_means(logits: Any, label: Tensor, *, ignore_label: int | None = -100) -> tuple[Tensor, Tensor]:
    """Return each class's mean cross entropy by sample, and which are there.

    Args:
        logits: as for :func:`per_sample_balanced_cross_entropy`.
        label: as there.
        ignore_label: as there.

    Returns:
        Means ``(batch, classes)``, 0 for a class without a valid voxel, and a boolean tensor of the same shape.

    Example:
        >>> means, present = class_means(torch.zeros(1, 2, 3), torch.tensor([[0, 0, 0]]))
        >>> means, present
        (tensor([[0.6931, 0.0000]]), tensor([[ True, False]]))
    """
    logits = finest_logits(logits)
    classes, valid = read_valid_classes(logits, label, ignore_label)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits, classes, reduction="none").masked_fill(~valid, 0)[:, None].flatten(1)
    # Class numbers behind the last one collect voxels that do not count.
    chosen = classes.masked_fill(~valid, logits.shape[1])[:, None].flatten(1)
    sums = losses.new_zeros(len(losses), logits.shape[1] + 1).scatter_add(1, chosen, losses)[:, :-1]
    counts = losses.new_zeros(sums.shape[0], sums.shape[1] + 1).scatter_add(1, chosen, torch.ones_like(losses))[:, :-1]
    return sums / counts.clamp(min=1), counts > 0
