"""Soft clDice, the centreline term."""

from collections.abc import Iterable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from uumamba.losses.cross_entropy import voxel_cross_entropy
from uumamba.losses.inputs import keep_valid, read_label, upcast_half
from uumamba.losses.soft_skeleton import soft_skeleton
from uumamba.runtime.options import NonNegativeInt, Positive, check_options


class SoftClDiceLoss(nn.Module):
    r"""One minus the soft centreline Dice.

    It measures how much of each mask's skeleton the other mask contains.

    .. math:: L = 1 - \frac{2\,T_p\,T_s}{T_p + T_s}, \quad
        T_p = \frac{\sum_v S(p)_v\, y_v + s}{\sum_v S(p)_v + s}, \quad
        T_s = \frac{\sum_v S(y)_v\, p_v + s}{\sum_v S(y)_v + s}

    S is the :func:`~uumamba.losses.soft_skeleton.soft_skeleton` and :math:`s` = ``smooth``. A short gap in a thin
    vessel hardly changes Dice, but increases this loss by its share of the length. The loss is in [0, 1) and 0 for a
    perfect prediction. With an empty label :math:`T_s` is 1, and :math:`T_p` decreases with every predicted skeleton
    voxel. A prediction that is too thick does not increase the loss, so combine it with a region term. Ignored voxels
    are background in both masks.

    Peak memory of the forward and backward pass in addition to the logits, in multiples of their bytes in float32, with
    n iterations and K classes: :math:`(2n + 26)/K`, but at least 1.1, for ``"union"``; :math:`2 + (2n + 20)/K` for
    ``"each"``.

    Args:
        iterations: at least the radius, in voxels, of the thickest vessel.
        vessels_of: ``"union"`` compares the complete foreground, which is fast and keeps branches of different classes
            connected; ``"each"`` averages over foreground classes, which takes 1.5 times as long per class.
        batch_dice: sum over the voxels of the batch before the ratios.
        smooth: positive term in numerators and denominators, in voxels.
        ignore_label: label of voxels that are excluded from all sums.

    Raises:
        UsageError: an argument or a label is out of range, or the shapes do not match.

    Example:
        >>> label = torch.zeros(1, 1, 5, 9, dtype=torch.long)
        >>> label[..., 1:4, :] = 1
        >>> sure = 100 * torch.nn.functional.one_hot(label[:, 0], 2).movedim(-1, 1).float()
        >>> gap = sure.clone()
        >>> gap[..., 4] = torch.tensor([100.0, 0.0])[:, None]
        >>> SoftClDiceLoss(iterations=2)(sure, label), SoftClDiceLoss(iterations=2)(gap, label)
        (tensor(0.), tensor(0.0526))

    References:
        Shit et al., *clDice: a Novel Topology-Preserving Loss Function for Tubular Structure Segmentation*, CVPR 2021,
        arXiv:2003.07311.
        Differs from the paper: several classes are joined or averaged; the paper has one class. MONAI's SoftclDiceLoss
        sums over classes before the ratios and adds 1e-4 to the harmonic mean's denominator.
    """

    @check_options
    def __init__(
        self,
        *,
        iterations: NonNegativeInt = 5,
        vessels_of: Literal["union", "each"] = "union",
        batch_dice: bool = False,
        smooth: Positive = 1.0,
        ignore_label: int | None = None,
    ) -> None:
        super().__init__()
        self.iterations = iterations
        self.vessels_of = vessels_of
        self.batch_dice = batch_dice
        self.smooth = smooth
        self.ignore_label = ignore_label

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of logits ``(batch, classes, *spatial)`` against a label ``(batch, 1, *spatial)``."""
        own_class, valid = read_label(logits, label, self.ignore_label)
        if self.vessels_of == "union":
            foreground = _foreground(logits, valid)
            sums = sum_voxels(foreground, own_class > 0, valid, iterations=self.iterations)[:, None]
        else:
            classes = keep_valid(upcast_half(logits), valid).softmax(1).split(1, dim=1)
            masks = (own_class == value for value in range(1, len(classes)))
            sums = sum_centrelines(classes[1:], masks, valid, iterations=self.iterations)
        return centreline_loss(sums, smooth=self.smooth, batch_dice=self.batch_dice)


def sum_centrelines(
    probabilities: Iterable[Tensor], masks: Iterable[Tensor], valid: Tensor | None, *, iterations: int
) -> Tensor:
    """Return the sums of pairs of probability and mask, ``(batch, pairs, 4)``.

    The backward pass keeps one pair at a time in memory.
    """
    sums = partial(sum_voxels, iterations=iterations)
    return torch.stack(
        [
            checkpoint(sums, each, mask, valid, use_reentrant=False, preserve_rng_state=False)
            for each, mask in zip(probabilities, masks, strict=True)
        ],
        dim=1,
    )


def centreline_loss(sums: Tensor, *, smooth: float, batch_dice: bool) -> Tensor:
    """Return one minus the mean clDice of sums ``(batch, pairs, 4)``."""
    if batch_dice:
        sums = sums.sum(0)
    inside, predicted, found, true = sums.unbind(-1)
    precision = (inside + smooth) / (predicted + smooth)
    sensitivity = (found + smooth) / (true + smooth)
    return 1 - (2 * precision * sensitivity / (precision + sensitivity)).mean()


def sum_voxels(probability: Tensor, mask: Tensor, valid: Tensor | None, *, iterations: int) -> Tensor:
    """Return the four sums of the loss, ``(batch, 4)``.

    They are the voxels of the predicted skeleton inside the label and in total, then the voxels of the label's
    skeleton inside the prediction and in total.
    """
    probability = keep_valid(probability, valid)
    skeleton = soft_skeleton(probability, iterations=iterations)
    true = soft_skeleton(mask, iterations=iterations)
    terms = (skeleton * mask, skeleton, probability * true, true.to(skeleton.dtype))
    return torch.stack([each.flatten(1).sum(1) for each in terms], dim=-1)


def _foreground(logits: Tensor, valid: Tensor | None) -> Tensor:
    """Return the foreground probability ``(batch, 1, *spatial)``, exact near 0."""
    background = torch.zeros_like(logits[:, :1], dtype=torch.long)
    return -torch.expm1(-voxel_cross_entropy(logits, background, valid))[:, None]
