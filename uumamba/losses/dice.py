"""The region term: soft Dice."""

import torch
from torch import Tensor, nn

from uumamba.losses.inputs import check_inputs, full_precision, own_and_valid
from uumamba.losses.slabs import is_large
from uumamba.losses.softmax_terms import softmax_sums, sum_by_class


class SoftDiceLoss(nn.Module):
    r"""One minus the mean soft Dice over classes (and over samples, unless they are pooled).

    .. math:: L = 1 - \frac{1}{K} \sum_k \frac{2 \sum_v p_{kv} y_{kv} + s}{\sum_v p_{kv} + \sum_v y_{kv} + s}

    with :math:`p` the softmax over classes and :math:`s` = ``smooth``. It lies in [0, 1) and is 0 for a perfect
    prediction. A class that is absent from the label of a sample (of the whole batch with ``batch_dice``) has the Dice
    :math:`s / (\sum_v p_{kv} + s)`: 1 when none of it is predicted, near 0 as soon as a few voxels are, and with hardly
    a gradient there, so false alarms of absent classes are left to the cross entropy. A batch without a single valid
    voxel gives 0.

    Args:
        batch_dice: pool the voxels of the batch before the ratio; steadier where samples lack classes.
        include_background: count class 0 as well.
        smooth: added to numerator and denominator, in voxels.
        ignore_label: voxels with this label count in no sum.

    Raises:
        ValueError: ``smooth`` is not positive, or the shapes do not fit.

    Example:
        >>> label = torch.tensor([0, 1, 2, 2]).reshape(1, 1, 2, 2)
        >>> perfect = 100 * torch.nn.functional.one_hot(label[:, 0], 3).movedim(-1, 1).float()
        >>> round(SoftDiceLoss()(perfect, label).item(), 6)
        0.0

    References:
        Drozdzal et al., *The Importance of Skip Connections in Biomedical Image Segmentation*, 2016, arXiv:1608.04117.
        Isensee et al., *nnU-Net*, Nature Methods 18, 2021 (no background, smooth 1e-5, pooling over the batch).
        Differs from the paper: 1 - Dice in place of -Dice, so that a learned weight cannot push it below any bound.
    """

    def __init__(
        self,
        *,
        batch_dice: bool = False,
        include_background: bool = False,
        smooth: float = 1e-5,
        ignore_label: int | None = None,
    ) -> None:
        super().__init__()
        if not smooth > 0:
            raise ValueError(f"smooth must be positive, got {smooth}: without it an absent class is 0 / 0")
        self.batch_dice = batch_dice
        self.include_background = include_background
        self.smooth = smooth
        self.ignore_label = ignore_label

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of logits ``(batch, classes, *spatial)`` against a label ``(batch, 1, *spatial)``."""
        check_inputs(logits, label)
        if is_large(logits):
            intersection, total = _overlap_of_large(logits, label, ignore_label=self.ignore_label)
        else:
            probabilities = full_precision(logits).softmax(1)
            intersection, total = overlap_sums(probabilities, label, ignore_label=self.ignore_label)
        if self.batch_dice:
            intersection, total = intersection.sum(0), total.sum(0)
        if not self.include_background:
            intersection, total = intersection[..., 1:], total[..., 1:]
        dice = (2 * intersection + self.smooth) / (total + self.smooth)
        return 1 - dice.mean()


def overlap_sums(probabilities: Tensor, label: Tensor, *, ignore_label: int | None = None) -> tuple[Tensor, Tensor]:
    r"""For each sample and class :math:`\sum_v p y` and :math:`\sum_v p + \sum_v y`, both ``(batch, classes)``.

    The label is never blown up to one channel a class: each voxel adds the probability of its own class to that
    class's bin.
    """
    own_class, valid = own_and_valid(label, ignore_label)
    if valid is not None:
        probabilities = probabilities * valid
    classes = probabilities.shape[1]
    intersection = sum_by_class(probabilities.gather(1, own_class), own_class, classes=classes)
    return intersection, probabilities.flatten(2).sum(2) + _volumes(own_class, valid, classes, probabilities.dtype)


def _overlap_of_large(logits: Tensor, label: Tensor, *, ignore_label: int | None) -> tuple[Tensor, Tensor]:
    """The same sums from logits, piece by piece."""
    own_class, valid = own_and_valid(label, ignore_label)
    intersection, predicted = softmax_sums(logits, own_class, valid)
    return intersection, predicted + _volumes(own_class, valid, logits.shape[1], predicted.dtype)


def _volumes(own_class: Tensor, valid: Tensor | None, classes: int, dtype: torch.dtype) -> Tensor:
    """Valid voxels of each class, ``(batch, classes)``."""
    counted = torch.ones_like(own_class, dtype=dtype) if valid is None else valid.to(dtype)
    return sum_by_class(counted, own_class, classes=classes)
