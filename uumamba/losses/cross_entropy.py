"""Cross entropy, the distribution term."""

from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.losses.inputs import check_inputs, full_precision, own_and_valid
from uumamba.losses.slabs import is_large
from uumamba.losses.softmax_terms import voxel_nll

NO_LABEL = -100
"""Torch's label of ignored voxels."""


class CrossEntropyLoss(nn.Module):
    r"""Mean negative log probability of the true class over all voxels that are not ignored.

    .. math:: L = -\frac{1}{|V|} \sum_v \log p_{y_v v}

    The loss is 0 for a perfect prediction, and 0 (not NaN) when all voxels are ignored.

    Args:
        ignore_label: voxels with this label do not count.

    Raises:
        UsageError: the shapes do not match.

    Example:
        >>> import torch
        >>> CrossEntropyLoss()(torch.zeros(1, 4, 2, 2), torch.ones(1, 1, 2, 2, dtype=torch.long))  # ln 4
        tensor(1.3863)

    References:
        Good, *Rational Decisions*, Journal of the Royal Statistical Society B 14, 1952. Differs from the paper: none.
    """

    def __init__(self, *, ignore_label: int | None = None) -> None:
        super().__init__()
        self.ignore_label = ignore_label

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of logits ``(batch, classes, *spatial)`` against a label ``(batch, 1, *spatial)``."""
        check_inputs(logits, label)
        return mean_over_valid(voxel_cross_entropy(logits, label, self.ignore_label), label, self.ignore_label)


def voxel_cross_entropy(logits: Tensor, label: Tensor, ignore_label: int | None) -> Tensor:
    r"""Return :math:`-\log p_y` of each voxel, ``(batch, *spatial)`` in at least float32; 0 where ignored."""
    if is_large(logits):
        return voxel_nll(logits, *own_and_valid(label, ignore_label))[:, 0]
    mark = NO_LABEL if ignore_label is None else ignore_label
    return F.cross_entropy(full_precision(logits), label[:, 0].long(), reduction="none", ignore_index=mark)


def mean_over_valid(values: Tensor, label: Tensor, ignore_label: int | None) -> Tensor:
    """Average ``(batch, *spatial)`` values, which are 0 in ignored voxels, over all other voxels."""
    if ignore_label is None:
        return values.mean()
    return values.sum() / (label != ignore_label).sum().clamp_min(1)
