"""Focal loss, the pixel term."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uumamba.losses.cross_entropy import mean_over_valid, voxel_cross_entropy
from uumamba.losses.inputs import read_label
from uumamba.losses.softmax_terms import sum_by_class
from uumamba.runtime.errors import require
from uumamba.runtime.options import NonNegative, Probability, check_options


class FocalLoss(nn.Module):
    r"""Cross entropy with lower weights for confidently correct voxels.

    .. math:: L = \frac{1}{|V|} \sum_v -\alpha_{y_v} (1 - p_{y_v v})^\gamma \log p_{y_v v}

    :math:`p` is the softmax of the logits. The loss tends to 0 for a perfect prediction in any number of classes. It is
    0 if all voxels are ignored. With ``gamma=0`` and without ``alpha`` it is the cross entropy.

    With ``class_mean`` the loss is averaged within each class of the batch's label, and then over these classes C:

    .. math:: L = \frac{1}{|C|} \sum_{c \in C} \frac{1}{|V_c|}
        \sum_{v \in V_c} -\alpha_c (1 - p_{cv})^\gamma \log p_{cv}

    So a vessel of a few voxels has the weight of the background. False negatives then increase the loss much more than
    false positives, so combine it with a region term.

    Args:
        gamma: focusing exponent; larger values reduce the weight of confident voxels more.
        alpha: class weights. ``None``: all 1. A number: 1 - alpha for the background, alpha for every other class.
            A sequence: one weight per class.
        class_mean: give all present classes the same weight, independent of their number of voxels.
        ignore_label: label of voxels that are ignored.

    Raises:
        UsageError: ``gamma`` or ``alpha`` is out of range, the numbers of ``alpha`` and classes differ, the shapes do
            not match, or a label is out of range.

    Example:
        >>> label = torch.ones(1, 1, 2, 2, dtype=torch.long)
        >>> FocalLoss(gamma=2.0)(torch.zeros(1, 2, 2, 2), label)  # (1 - 0.5)**2 * ln 2
        tensor(0.1733)

    References:
        Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017, arXiv:1708.02002.
        Differs from the paper: softmax over classes instead of one sigmoid; the mean is over all voxels instead of the
        number of foreground anchors. The loss is the number of classes times that of MONAI's ``FocalLoss`` with
        ``use_softmax=True``, which also divides by the classes.
    """

    @check_options
    def __init__(
        self,
        *,
        gamma: NonNegative = 2.0,
        alpha: Probability | Sequence[NonNegative] | None = None,
        class_mean: bool = False,
        ignore_label: int | None = None,
    ) -> None:
        super().__init__()
        self.gamma = gamma
        self.alpha = alpha
        self.class_mean = class_mean
        self.ignore_label = ignore_label

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of logits ``(batch, classes, *spatial)`` against a label ``(batch, 1, *spatial)``."""
        own_class, valid = read_label(logits, label, self.ignore_label)
        cross_entropy = voxel_cross_entropy(logits, own_class, valid)
        miss = -torch.expm1(-cross_entropy)  # 1 - p, exact near p = 1
        # The lower bound gives the power a finite gradient at p = 1.
        focal = miss.clamp_min(torch.finfo(miss.dtype).tiny) ** self.gamma * cross_entropy
        if self.alpha is not None:
            focal = focal * _weigh_voxels(own_class, _list_alpha(self.alpha, logits.shape[1]), dtype=focal.dtype)
        if self.class_mean:
            return mean_over_classes(focal, own_class, valid, classes=logits.shape[1])
        return mean_over_valid(focal, valid)


def _list_alpha(alpha: float | Sequence[float], classes: int) -> list[float]:
    """Return one weight per class.

    Raises:
        UsageError: the number of weights differs from the number of classes.
    """
    if not isinstance(alpha, Sequence):
        return [1 - alpha] + [alpha] * (classes - 1)
    require(len(alpha) == classes, "alpha", got=alpha, expected=f"{classes} weights, one per class")
    return [float(weight) for weight in alpha]


def _weigh_voxels(own_class: Tensor, weights: Sequence[float], *, dtype: torch.dtype) -> Tensor:
    """Return each voxel's class weight.

    The weights are filled in class by class: a table of weights would have to be copied to the accelerator.
    """
    voxel_weight = torch.full_like(own_class[:, 0], weights[0], dtype=dtype)
    for index, weight in enumerate(weights):
        if weight != weights[0]:
            voxel_weight = voxel_weight.masked_fill(own_class[:, 0] == index, weight)
    return voxel_weight


def mean_over_classes(values: Tensor, own_class: Tensor, valid: Tensor | None, *, classes: int) -> Tensor:
    """Average ``(batch, *spatial)`` values per class, then over classes.

    Only classes of valid voxels are included. The values of other voxels must be 0.
    """
    counted = torch.ones_like(own_class, dtype=values.dtype) if valid is None else valid.to(values.dtype)
    sums, voxels = (sum_by_class(each, own_class, classes=classes).sum(0) for each in (values[:, None], counted))
    return (sums / voxels.clamp_min(1)).sum() / (voxels > 0).sum().clamp_min(1)
