"""Losses of overlapping regions, each with its own sigmoid output."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from uumamba.losses.cl_dice import centreline_loss, sum_centrelines, sum_voxels
from uumamba.losses.inputs import keep_valid
from uumamba.losses.region_masks import Membership, RegionTerm, count_voxels
from uumamba.runtime.options import NonNegative, NonNegativeInt, Positive, check_options


class RegionDiceLoss(RegionTerm):
    r"""One minus the mean soft Dice over regions and samples.

    .. math:: L = 1 - \frac{1}{R} \sum_r \frac{2 \sum_v p_{rv} y_{rv} + s}{\sum_v p_{rv} + \sum_v y_{rv} + s}

    :math:`p` is the sigmoid of the region's logit, :math:`y` its mask and :math:`s` = ``smooth``, in voxels. The loss
    is in [0, 1) and 0 for a perfect prediction. A region that is absent from the label of a sample behaves as a class
    of :class:`uumamba.losses.SoftDiceLoss`, so combine the loss with cross entropy. A batch without valid voxels has
    the loss 0.

    Args:
        membership: ``(classes, regions)``; see :class:`uumamba.losses.region_masks.RegionTerm`.
        batch_dice: sum over the voxels of the batch before the ratio.
        smooth: positive term in numerator and denominator, in voxels.
        ignore_label: label of voxels that are excluded from all sums.

    Raises:
        UsageError: ``smooth`` is not positive, the table is invalid, the shapes do not match, or a label is out of
            range.

    Example:
        >>> whole_and_core = [[False, False], [True, False], [True, True]]
        >>> label = torch.tensor([0, 1, 2, 2]).reshape(1, 1, 2, 2)
        >>> sure = torch.tensor([[-99.0, 99, 99, 99], [-99, -99, 99, 99]]).reshape(1, 2, 2, 2)
        >>> RegionDiceLoss(whole_and_core)(sure, label)
        tensor(0.)

    References:
        Isensee et al., *nnU-Net*, Nature Methods 18, 2021 (region-based training of BraTS). Differs from the paper:
        1 - Dice instead of -Dice.
    """

    @check_options
    def __init__(
        self,
        membership: Membership,
        *,
        batch_dice: bool = False,
        smooth: Positive = 1e-5,
        ignore_label: int | None = None,
    ) -> None:
        super().__init__(membership, ignore_label=ignore_label)
        self.batch_dice = batch_dice
        self.smooth = smooth

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of logits ``(batch, regions, *spatial)`` against a label ``(batch, 1, *spatial)``."""
        logits, masks, valid = self.read(logits, label)
        probabilities = keep_valid(logits.sigmoid(), valid)
        intersection = probabilities.masked_fill(~masks, 0).flatten(2).sum(2)
        total = probabilities.flatten(2).sum(2) + count_voxels(masks, valid)[0]
        if self.batch_dice:
            intersection, total = intersection.sum(0), total.sum(0)
        return 1 - ((2 * intersection + self.smooth) / (total + self.smooth)).mean()


class RegionCrossEntropyLoss(RegionTerm):
    r"""Mean binary cross entropy over regions and voxels.

    .. math:: L = -\frac{1}{R |V|} \sum_r \sum_v y_{rv} \log p_{rv} + (1 - y_{rv}) \log(1 - p_{rv})

    The mean is over the set V of voxels that are not ignored. The loss is 0 for a perfect prediction, and 0 (not NaN)
    if all voxels are ignored.

    Args:
        membership: ``(classes, regions)``; see :class:`uumamba.losses.region_masks.RegionTerm`.
        ignore_label: label of voxels that are ignored.

    Raises:
        UsageError: the table is invalid, the shapes do not match, or a label is out of range.

    Example:
        >>> RegionCrossEntropyLoss([[False], [True]])(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2).long())  # ln 2
        tensor(0.6931)

    References:
        Good, *Rational Decisions*, Journal of the Royal Statistical Society B 14, 1952. Differs from the paper: none.
    """

    @check_options
    def __init__(self, membership: Membership, *, ignore_label: int | None = None) -> None:
        super().__init__(membership, ignore_label=ignore_label)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of logits ``(batch, regions, *spatial)`` against a label ``(batch, 1, *spatial)``."""
        logits, masks, valid = self.read(logits, label)
        return _average(binary_cross_entropy(logits, masks, valid), valid)


class RegionFocalLoss(RegionTerm):
    r"""Binary cross entropy with lower weights for confidently correct voxels.

    .. math:: L = -\frac{1}{R |V|} \sum_r \sum_v (1 - q_{rv})^\gamma \log q_{rv}, \qquad
        q_{rv} = y_{rv}\, p_{rv} + (1 - y_{rv})(1 - p_{rv})

    With ``gamma=0`` it is the binary cross entropy. The loss is 0 if all voxels are ignored. With ``class_mean`` the
    values are averaged inside and outside of each region of the batch's label, and then over those of these sides that
    have voxels, so that a region of a few voxels has the weight of its surroundings.

    Args:
        membership: ``(classes, regions)``; see :class:`uumamba.losses.region_masks.RegionTerm`.
        gamma: focusing exponent; larger values reduce the weight of confident voxels more.
        class_mean: give the inside and the outside of each region the same weight.
        ignore_label: label of voxels that are ignored.

    Raises:
        UsageError: ``gamma`` is negative, the table is invalid, the shapes do not match, or a label is out of range.

    Example:
        >>> focal = RegionFocalLoss([[False], [True]], gamma=2.0)
        >>> focal(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2).long())  # (1 - 0.5)**2 * ln 2
        tensor(0.1733)

    References:
        Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017, arXiv:1708.02002.
        Differs from the paper: the mean is over all voxels instead of the number of foreground anchors.
    """

    @check_options
    def __init__(
        self,
        membership: Membership,
        *,
        gamma: NonNegative = 2.0,
        class_mean: bool = False,
        ignore_label: int | None = None,
    ) -> None:
        super().__init__(membership, ignore_label=ignore_label)
        self.gamma = gamma
        self.class_mean = class_mean

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of logits ``(batch, regions, *spatial)`` against a label ``(batch, 1, *spatial)``."""
        logits, masks, valid = self.read(logits, label)
        cross_entropy = binary_cross_entropy(logits, masks, valid)
        miss = -torch.expm1(-cross_entropy)  # 1 - q, exact near q = 1
        # The lower bound gives the power a finite gradient at q = 1.
        focal = miss.clamp_min(torch.finfo(miss.dtype).tiny) ** self.gamma * cross_entropy
        if not self.class_mean:
            return _average(focal, valid)
        inside = focal.masked_fill(~masks, 0).flatten(2).sum(2)
        sums = torch.stack([inside, focal.flatten(2).sum(2) - inside]).sum(1)
        voxels = count_voxels(masks, valid).sum(1)
        return (sums / voxels.clamp_min(1)).sum() / (voxels > 0).sum().clamp_min(1)


class RegionClDiceLoss(RegionTerm):
    r"""One minus the soft centreline Dice of regions.

    Formula, edge cases and units are those of :class:`uumamba.losses.SoftClDiceLoss`, with the sigmoid of a region's
    logit for the probability of a class. The probability of the union is that of the most probable region, so a voxel
    is foreground if any region is predicted there.

    Args:
        membership: ``(classes, regions)``; see :class:`uumamba.losses.region_masks.RegionTerm`.
        iterations: at least the radius, in voxels, of the thickest vessel.
        vessels_of: ``"union"`` compares the union of all regions, ``"each"`` averages over regions.
        batch_dice: sum over the voxels of the batch before the ratios.
        smooth: positive term in numerators and denominators, in voxels.
        ignore_label: label of voxels that are excluded from all sums.

    Raises:
        UsageError: an argument or a label is out of range, or the shapes do not match.

    Example:
        >>> label = torch.zeros(1, 1, 5, 9, dtype=torch.long)
        >>> label[..., 1:4, :] = 1
        >>> RegionClDiceLoss([[False], [True]], iterations=2)(200.0 * label - 100, label)
        tensor(0.)

    References:
        Shit et al., *clDice: a Novel Topology-Preserving Loss Function for Tubular Structure Segmentation*, CVPR 2021,
        arXiv:2003.07311. Differs from the paper: several regions are joined or averaged.
    """

    @check_options
    def __init__(
        self,
        membership: Membership,
        *,
        iterations: NonNegativeInt = 5,
        vessels_of: Literal["union", "each"] = "union",
        batch_dice: bool = False,
        smooth: Positive = 1.0,
        ignore_label: int | None = None,
    ) -> None:
        super().__init__(membership, ignore_label=ignore_label)
        self.iterations = iterations
        self.vessels_of = vessels_of
        self.batch_dice = batch_dice
        self.smooth = smooth

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of logits ``(batch, regions, *spatial)`` against a label ``(batch, 1, *spatial)``."""
        logits, masks, valid = self.read(logits, label)
        probabilities = logits.sigmoid()
        if self.vessels_of == "union":
            union = probabilities.amax(1, keepdim=True), masks.any(1, keepdim=True)
            sums = sum_voxels(*union, valid, iterations=self.iterations)[:, None]
        else:
            each = probabilities.split(1, dim=1), masks.split(1, dim=1)
            sums = sum_centrelines(*each, valid, iterations=self.iterations)
        return centreline_loss(sums, smooth=self.smooth, batch_dice=self.batch_dice)


def binary_cross_entropy(logits: Tensor, masks: Tensor, valid: Tensor | None) -> Tensor:
    r"""Return :math:`-\log q` of each output and voxel, 0 where not valid.

    The logits must be those of :meth:`RegionTerm.read`. A product of mask and logarithm would store the mask as floats.

    Example:
        >>> binary_cross_entropy(torch.zeros(1, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool), None)
        tensor([[[0.6931]]])
    """
    return keep_valid(-F.logsigmoid(torch.where(masks, logits, -logits)), valid)


def _average(values: Tensor, valid: Tensor | None) -> Tensor:
    """Average ``(batch, regions, *spatial)`` values over valid voxels and regions."""
    if valid is None:
        return values.mean()
    return values.sum() / (values.shape[1] * valid.sum()).clamp_min(1)
