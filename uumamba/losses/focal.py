"""Focal loss, the pixel term."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uumamba.losses.cross_entropy import mean_over_valid, voxel_cross_entropy
from uumamba.losses.inputs import check_inputs, own_and_valid
from uumamba.losses.softmax_terms import sum_by_class
from uumamba.runtime.errors import require


class FocalLoss(nn.Module):
    r"""Cross entropy in which confidently correct voxels count less.

    .. math:: L = \frac{1}{|V|} \sum_v -\alpha_{y_v} (1 - p_{y_v v})^\gamma \log p_{y_v v}

    with :math:`p` the softmax of the logits. The loss tends to 0 for a perfect prediction in any number of classes, and
    is 0 when all voxels are ignored. With ``gamma=0`` and no ``alpha`` it is the cross entropy.

    With ``class_mean`` it is averaged within each class present in the batch's label, and then over these classes,

    .. math:: L = \frac{1}{|C|} \sum_{c \in C} \frac{1}{|V_c|}
        \sum_{v \in V_c} -\alpha_c (1 - p_{cv})^\gamma \log p_{cv}

    so a vessel of a few voxels counts as much as the background. False negatives then cost far more than false
    positives, so combine it with a region term.

    Args:
        gamma: focusing exponent; larger values lower the weight of confident voxels more.
        alpha: class weights. ``None``: all 1. A number: 1 - alpha for the background, alpha for every other class.
            A sequence: one weight for each class.
        class_mean: weight all present classes equally, whatever their number of voxels.
        ignore_label: voxels with this label do not count.

    Raises:
        UsageError: ``gamma`` or ``alpha`` is out of range, ``alpha`` has another number of classes, or the shapes do
            not match.

    Example:
        >>> label = torch.ones(1, 1, 2, 2, dtype=torch.long)
        >>> FocalLoss(gamma=2.0)(torch.zeros(1, 2, 2, 2), label)  # (1 - 0.5)**2 * ln 2
        tensor(0.1733)

    References:
        Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017, arXiv:1708.02002.
        Differs from the paper: softmax over classes instead of one sigmoid; the mean is over all voxels instead of the
        number of foreground anchors.
    """

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | None = None,
        class_mean: bool = False,
        ignore_label: int | None = None,
    ) -> None:
        super().__init__()
        require(gamma >= 0, "gamma", got=gamma, expected="a number of at least 0")
        is_valid = all(weight >= 0 for weight in alpha) if isinstance(alpha, Sequence) else 0 <= (alpha or 0) <= 1
        require(is_valid, "alpha", got=alpha, expected="a number from 0 to 1, or a weight of at least 0 for each class")
        self.gamma = gamma
        self.alpha = alpha
        self.class_mean = class_mean
        self.ignore_label = ignore_label

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of logits ``(batch, classes, *spatial)`` against a label ``(batch, 1, *spatial)``."""
        check_inputs(logits, label)
        cross_entropy = voxel_cross_entropy(logits, label, self.ignore_label)
        focal = focal_weight(cross_entropy, self.gamma) * cross_entropy
        if self.alpha is not None:
            focal = focal * _class_weight(label, self._alpha_of(logits.shape[1]), dtype=focal.dtype)
        if self.class_mean:
            return mean_over_classes(focal, label, self.ignore_label, classes=logits.shape[1])
        return mean_over_valid(focal, label, self.ignore_label)

    def _alpha_of(self, classes: int) -> list[float]:
        if isinstance(self.alpha, Sequence):
            require(
                len(self.alpha) == classes, "alpha", got=self.alpha, expected=f"{classes} weights, one for each class"
            )
            return [float(weight) for weight in self.alpha]
        assert self.alpha is not None  # checked by the caller
        return [1 - self.alpha] + [self.alpha] * (classes - 1)


def _class_weight(label: Tensor, weights: Sequence[float], *, dtype: torch.dtype) -> Tensor:
    """Return each voxel's class weight, filled class by class: a table would be copied to the accelerator first."""
    voxel_weight = torch.full_like(label[:, 0], weights[0], dtype=dtype)
    for index, weight in enumerate(weights):
        if weight != weights[0]:
            voxel_weight = voxel_weight.masked_fill(label[:, 0] == index, weight)
    return voxel_weight


def mean_over_classes(values: Tensor, label: Tensor, ignore_label: int | None, *, classes: int) -> Tensor:
    """Average ``(batch, *spatial)`` values, 0 where ignored, within each present class and then over classes."""
    own_class, valid = own_and_valid(label, ignore_label)
    counted = torch.ones_like(own_class, dtype=values.dtype) if valid is None else valid.to(values.dtype)
    sums, voxels = (sum_by_class(each, own_class, classes=classes).sum(0) for each in (values[:, None], counted))
    return (sums / voxels.clamp_min(1)).sum() / (voxels > 0).sum().clamp_min(1)


def focal_weight(cross_entropy: Tensor, gamma: float) -> Tensor:
    r"""Return :math:`(1 - p)^\gamma` from :math:`-\log p`, exact near p = 1, with a finite gradient at 1."""
    miss = -torch.expm1(-cross_entropy)
    return miss.clamp_min(torch.finfo(miss.dtype).tiny) ** gamma
