"""The pixel term: focal loss."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uumamba.losses.cross_entropy import mean_over_valid, voxel_cross_entropy
from uumamba.losses.inputs import check_inputs, own_and_valid
from uumamba.losses.softmax_terms import sum_by_class


class FocalLoss(nn.Module):
    r"""Cross entropy whose voxels count the less, the surer the network is of the true class.

    .. math:: L = \frac{1}{|V|} \sum_v -\alpha_{y_v} (1 - p_{y_v v})^\gamma \log p_{y_v v}

    with :math:`p` one softmax of the logits. It tends to 0 for a perfect prediction in any number of classes. With
    ``gamma=0`` and no ``alpha`` it is the cross entropy. It is 0 when every voxel is ignored.

    With ``class_mean`` it is averaged within each class that the label of the batch holds, and then over those classes,

    .. math:: L = \frac{1}{|C|} \sum_{c \in C} \frac{1}{|V_c|}
        \sum_{v \in V_c} -\alpha_c (1 - p_{cv})^\gamma \log p_{cv}

    so a vessel of a few voxels counts as much as the background around it. Missed vessels then cost far more than false
    ones, so keep a region term beside it.

    Args:
        gamma: how fast sure voxels lose weight.
        alpha: class weights. ``None``: all 1. A number: 1 - alpha for the background, alpha for every other class.
            A sequence: one weight a class.
        class_mean: every class present counts alike, however few its voxels.
        ignore_label: voxels with this label do not count.

    Raises:
        ValueError: ``gamma`` or ``alpha`` is out of range, ``alpha`` does not give one weight a class, or the shapes
            do not fit.

    Example:
        >>> label = torch.ones(1, 1, 2, 2, dtype=torch.long)
        >>> FocalLoss(gamma=2.0)(torch.zeros(1, 2, 2, 2), label)  # (1 - 0.5)**2 * ln 2
        tensor(0.1733)

    References:
        Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017, arXiv:1708.02002.
        Differs from the paper: softmax over classes in place of one sigmoid; the mean runs over all voxels, where the
        paper divides by the number of foreground anchors.
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
        if not gamma >= 0:
            raise ValueError(f"gamma must not be negative, got {gamma}")
        if isinstance(alpha, int | float) and not 0 <= alpha <= 1:
            raise ValueError(f"alpha as one number must lie in [0, 1], got {alpha}; pass one weight a class instead")
        if isinstance(alpha, Sequence) and not all(weight >= 0 for weight in alpha):
            raise ValueError(f"alpha must hold no negative class weight, got {tuple(alpha)}")
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
            if len(self.alpha) != classes:
                raise ValueError(f"alpha must give one weight for each of {classes} classes, got {len(self.alpha)}")
            return [float(weight) for weight in self.alpha]
        assert self.alpha is not None  # the caller asks only when there is one
        return [1 - self.alpha] + [self.alpha] * (classes - 1)


def _class_weight(label: Tensor, weights: Sequence[float], *, dtype: torch.dtype) -> Tensor:
    """Each voxel's weight, filled in class by class: a table would have to be copied to the accelerator first."""
    voxel_weight = torch.full_like(label[:, 0], weights[0], dtype=dtype)
    for index, weight in enumerate(weights):
        if weight != weights[0]:
            voxel_weight = voxel_weight.masked_fill(label[:, 0] == index, weight)
    return voxel_weight


def mean_over_classes(values: Tensor, label: Tensor, ignore_label: int | None, *, classes: int) -> Tensor:
    """Mean over the classes present of the mean of each; values are ``(batch, *spatial)``, 0 where ignored."""
    own_class, valid = own_and_valid(label, ignore_label)
    counted = torch.ones_like(own_class, dtype=values.dtype) if valid is None else valid.to(values.dtype)
    sums, voxels = (sum_by_class(each, own_class, classes=classes).sum(0) for each in (values[:, None], counted))
    return (sums / voxels.clamp_min(1)).sum() / (voxels > 0).sum().clamp_min(1)


def focal_weight(cross_entropy: Tensor, gamma: float) -> Tensor:
    r""":math:`(1 - p)^\gamma` of each voxel from :math:`-\log p`, exact near p = 1, with a finite gradient at 1."""
    miss = -torch.expm1(-cross_entropy)
    return miss.clamp_min(torch.finfo(miss.dtype).tiny) ** gamma
