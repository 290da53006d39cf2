"""Soft Dice, the region term."""

import torch
from torch import Tensor, nn

from uumamba.losses.inputs import keep_valid, read_label, upcast_half
from uumamba.losses.slabs import is_large
from uumamba.losses.softmax_terms import softmax_sums, sum_by_class
from uumamba.runtime.options import Positive, check_options


class SoftDiceLoss(nn.Module):
    r"""One minus the mean soft Dice over classes and samples.

    .. math:: L = 1 - \frac{1}{K} \sum_k \frac{2 \sum_v p_{kv} y_{kv} + s}{\sum_v p_{kv} + \sum_v y_{kv} + s}

    :math:`p` is the softmax over classes and :math:`s` = ``smooth``. The loss is in [0, 1) and 0 for a perfect
    prediction. A class that is absent from the label of a sample (with ``batch_dice`` of the batch) has the Dice
    :math:`s / (\sum_v p_{kv} + s)`. It is 1 if the class is not predicted, and near 0 with almost no gradient if the
    class is predicted in a few voxels. So combine the loss with cross entropy, which corrects these false positives.
    A batch without valid voxels has the loss 0.

    Args:
        batch_dice: sum over the voxels of the batch before the ratio; more stable if samples lack classes.
        include_background: include class 0.
        smooth: positive term in numerator and denominator, in voxels.
        ignore_label: label of voxels that are excluded from all sums.

    Raises:
        UsageError: ``smooth`` is not positive, the shapes do not match, or a label is out of range.

    Example:
        >>> label = torch.tensor([0, 1, 2, 2]).reshape(1, 1, 2, 2)
        >>> perfect = 100 * torch.nn.functional.one_hot(label[:, 0], 3).movedim(-1, 1).float()
        >>> round(SoftDiceLoss()(perfect, label).item(), 6)
        0.0

    References:
        Drozdzal et al., *The Importance of Skip Connections in Biomedical Image Segmentation*, 2016, arXiv:1608.04117.
        Isensee et al., *nnU-Net*, Nature Methods 18, 2021 (no background, smooth 1e-5, sums over the batch).
        Differs from the paper: 1 - Dice instead of -Dice, so that the loss with a learned weight has a lower bound.
    """

    @check_options
    def __init__(
        self,
        *,
        batch_dice: bool = False,
        include_background: bool = False,
        smooth: Positive = 1e-5,
        ignore_label: int | None = None,
    ) -> None:
        super().__init__()
        self.batch_dice = batch_dice
        self.include_background = include_background
        self.smooth = smooth
        self.ignore_label = ignore_label

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of logits ``(batch, classes, *spatial)`` against a label ``(batch, 1, *spatial)``."""
        own_class, valid = read_label(logits, label, self.ignore_label)
        if is_large(logits):
            intersection, predicted = softmax_sums(logits, own_class, valid)
        else:
            intersection, predicted = _overlap_sums(logits, own_class, valid)
        counted = torch.ones_like(own_class, dtype=predicted.dtype) if valid is None else valid.to(predicted.dtype)
        total = predicted + sum_by_class(counted, own_class, classes=logits.shape[1])
        if self.batch_dice:
            intersection, total = intersection.sum(0), total.sum(0)
        if not self.include_background:
            intersection, total = intersection[..., 1:], total[..., 1:]
        dice = (2 * intersection + self.smooth) / (total + self.smooth)
        return 1 - dice.mean()


def _overlap_sums(logits: Tensor, own_class: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\sum_v p y` and :math:`\sum_v p`, both ``(batch, classes)``.

    The first sum adds each voxel's probability of its class to the bin of the class. No one-hot label is needed.
    """
    probabilities = keep_valid(keep_valid(upcast_half(logits), valid).softmax(1), valid)
    own = probabilities.gather(1, own_class)
    return sum_by_class(own, own_class, classes=probabilities.shape[1]), probabilities.flatten(2).sum(2)
