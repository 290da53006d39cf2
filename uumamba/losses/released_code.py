"""Loss of UU-Mamba's released code, including its errors."""

import math

from torch import Tensor, nn

from uumamba.losses.cross_entropy import CrossEntropyLoss, mean_over_valid
from uumamba.losses.dice import SoftDiceLoss
from uumamba.losses.inputs import keep_valid, read_label, upcast_half
from uumamba.runtime.options import check_options

SMOOTH = 1e-5
ALPHA = 0.5
GAMMA = 2
CONSTANT = 3 * math.log(2)  # three times log(1 + s**2) at s = 1, the value of the untrained weights in that code


class ReleasedCodeLoss(nn.Module):
    r"""Loss of UU-Mamba's released trainer.

    .. math:: L = \tfrac12 (-\mathrm{Dice} + \mathrm{CE} + \mathrm{Focal}) + 3 \log 2

    Use it only to reproduce the results of that code. The code creates its learnable weights again after the optimizer,
    so they remain 1. Its focal term computes the softmax of probabilities, so :math:`p_y` is at most
    :math:`e / (e + K - 1)`, and a perfect prediction in K = 4 classes still has the loss 0.10. The Dice term has no
    background, the smoothing 1e-5, and the absent classes of :class:`SoftDiceLoss`.

    Args:
        batch_dice: sum over the voxels of the batch in the Dice term, as set in nnU-Net's plans.
        ignore_label: label of voxels that are ignored by all terms.

    Raises:
        UsageError: the shapes do not match, or a label is out of range.

    Example:
        >>> import torch
        >>> loss = ReleasedCodeLoss()(torch.zeros(2, 4, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.long))
        >>> loss.shape
        torch.Size([])

    References:
        Tsai et al., *UU-Mamba: Uncertainty-aware U-Mamba for Cardiac Image Segmentation*, 2024, arXiv:2405.17496.
        Differs from the paper: the weights are learned in the paper, but not in the released code.
    """

    @check_options
    def __init__(self, *, batch_dice: bool = True, ignore_label: int | None = None) -> None:
        super().__init__()
        self.dice_loss = SoftDiceLoss(batch_dice=batch_dice, smooth=SMOOTH, ignore_label=ignore_label)
        self.cross_entropy = CrossEntropyLoss(ignore_label=ignore_label)
        self.ignore_label = ignore_label

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of logits ``(batch, classes, *spatial)`` against a label ``(batch, 1, *spatial)``."""
        negative_dice = self.dice_loss(logits, label) - 1
        focal = double_softmax_focal(logits, label, self.ignore_label)
        return 0.5 * (negative_dice + self.cross_entropy(logits, label) + focal) + CONSTANT


def double_softmax_focal(logits: Tensor, label: Tensor, ignore_label: int | None = None) -> Tensor:
    r"""Focal term of the released code, averaged over valid voxels.

    .. math:: -\alpha (1 - q)^\gamma \log q, \qquad q = (1 - s)\,\tilde p_y + \frac{s}{K - 1} (1 - \tilde p_y) + s

    :math:`\tilde p` is the softmax of the softmax, and s = 1e-5 smooths the one-hot targets. Alpha is 0.5 for every
    class, because that code gives alpha to class 0 and 1 - alpha to all other classes.
    """
    own_class, valid = read_label(logits, label, ignore_label)
    classes = logits.shape[1]
    own = keep_valid(upcast_half(logits), valid).softmax(1).softmax(1).gather(1, own_class)
    smoothed = (1 - SMOOTH) * own + SMOOTH / (classes - 1) * (1 - own) + SMOOTH
    return mean_over_valid(keep_valid(-ALPHA * (1 - smoothed) ** GAMMA * smoothed.log(), valid), valid)
