"""Cross entropy, the distribution term."""

from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.losses.inputs import keep_valid, read_label, upcast_half
from uumamba.losses.slabs import is_large
from uumamba.losses.softmax_terms import voxel_nll
from uumamba.runtime.options import check_options


class CrossEntropyLoss(nn.Module):
    r"""Mean negative log probability of the true class.

    .. math:: L = -\frac{1}{|V|} \sum_v \log p_{y_v v}

    The mean is over the set V of voxels that are not ignored. The loss is 0 for a perfect prediction, and 0 (not NaN)
    if all voxels are ignored.

    Args:
        ignore_label: label of voxels that are ignored.

    Raises:
        UsageError: the shapes do not match, or a label is out of range.

    Example:
        >>> import torch
        >>> CrossEntropyLoss()(torch.zeros(1, 4, 2, 2), torch.ones(1, 1, 2, 2, dtype=torch.long))  # ln 4
        tensor(1.3863)

    References:
        Good, *Rational Decisions*, Journal of the Royal Statistical Society B 14, 1952. Differs from the paper: none.
    """

    @check_options
    def __init__(self, *, ignore_label: int | None = None) -> None:
        super().__init__()
        self.ignore_label = ignore_label

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of logits ``(batch, classes, *spatial)`` against a label ``(batch, 1, *spatial)``."""
        own_class, valid = read_label(logits, label, self.ignore_label)
        return mean_over_valid(voxel_cross_entropy(logits, own_class, valid), valid)


def voxel_cross_entropy(logits: Tensor, own_class: Tensor, valid: Tensor | None) -> Tensor:
    r"""Return :math:`-\log p_y` of each voxel, 0 where not valid.

    The result is ``(batch, *spatial)`` in at least float32.
    """
    if is_large(logits):
        return voxel_nll(logits, own_class, valid)[:, 0]
    found = F.cross_entropy(keep_valid(upcast_half(logits), valid), own_class[:, 0], reduction="none")
    return keep_valid(found[:, None], valid)[:, 0]


def mean_over_valid(values: Tensor, valid: Tensor | None) -> Tensor:
    """Average ``(batch, *spatial)`` values over valid voxels.

    The values of other voxels must be 0.
    """
    if valid is None:
        return values.mean()
    return values.sum() / valid.sum().clamp_min(1)
