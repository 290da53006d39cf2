"""Cross entropy, the distribution term."""

from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.losses.inputs import check_inputs, split_ignored, upcast_half
from uumamba.losses.slabs import is_large
from uumamba.losses.softmax_terms import voxel_nll


class CrossEntropyLoss(nn.Module):
    r"""Mean negative log probability of the true class.

    .. math:: L = -\frac{1}{|V|} \sum_v \log p_{y_v v}

    The mean is over the set V of voxels that are not ignored. The loss is 0 for a perfect prediction, and 0 (not NaN)
    if all voxels are ignored.

    Args:
        ignore_label: label of voxels that are ignored.

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
    r"""Return :math:`-\log p_y` of each voxel, 0 where ignored.

    The result is ``(batch, *spatial)`` in at least float32.
    """
    if is_large(logits):
        return voxel_nll(logits, *split_ignored(label, ignore_label))[:, 0]
    mark = -100 if ignore_label is None else ignore_label  # -100: torch's default, never a class
    return F.cross_entropy(upcast_half(logits), label[:, 0].long(), reduction="none", ignore_index=mark)


def mean_over_valid(values: Tensor, label: Tensor, ignore_label: int | None) -> Tensor:
    """Average ``(batch, *spatial)`` values over valid voxels.

    The values of ignored voxels must be 0.
    """
    if ignore_label is None:
        return values.mean()
    return values.sum() / (label != ignore_label).sum().clamp_min(1)
