"""Loss of UU-Mamba's released code, with its faults."""

import math

from torch import Tensor, nn

from uumamba.losses.cross_entropy import CrossEntropyLoss
from uumamba.losses.dice import SoftDiceLoss
from uumamba.losses.inputs import check_inputs, full_precision

SMOOTH = 1e-5
ALPHA = 0.5
GAMMA = 2
CONSTANT = 3 * math.log(2)
r"""Three times :math:`\log(1 + s^2)` at s = 1, the value of that code's untrained weights."""


class ReleasedCodeLoss(nn.Module):
    r"""The loss of UU-Mamba's released trainer: fixed weights, negative Dice, focal loss of a softmax of a softmax.

    .. math:: L = \tfrac12 (-\mathrm{Dice} + \mathrm{CE} + \mathrm{Focal}) + 3 \log 2

    Use it to reproduce that code, not to train well. Its learnable weights are re-created after the optimizer is built,
    so they stay at 1; its focal term takes the softmax of probabilities, so :math:`p_y` cannot exceed
    :math:`e / (e + K - 1)` and a perfect prediction in K = 4 classes still costs 0.10. The Dice term has no background
    and smoothing 1e-5, and handles absent classes as :class:`SoftDiceLoss` does.

    Args:
        batch_dice: pool the voxels of the batch in the Dice term, as nnU-Net's plans set it.

    Raises:
        UsageError: the shapes do not match.

    Example:
        >>> import torch
        >>> loss = ReleasedCodeLoss()(torch.zeros(2, 4, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.long))
        >>> loss.shape
        torch.Size([])

    References:
        Tsai et al., *UU-Mamba: Uncertainty-aware U-Mamba for Cardiac Image Segmentation*, 2024, arXiv:2405.17496.
        Differs from the paper: the paper's weights learn; in the released code they do not.
    """

    def __init__(self, *, batch_dice: bool = True) -> None:
        super().__init__()
        self.dice_loss = SoftDiceLoss(batch_dice=batch_dice, smooth=SMOOTH)
        self.cross_entropy = CrossEntropyLoss()

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of logits ``(batch, classes, *spatial)`` against a label ``(batch, 1, *spatial)``."""
        negative_dice = self.dice_loss(logits, label) - 1
        return (
            0.5 * (negative_dice + self.cross_entropy(logits, label) + double_softmax_focal(logits, label)) + CONSTANT
        )


def double_softmax_focal(logits: Tensor, label: Tensor) -> Tensor:
    r"""Focal term of the released code: :math:`-\alpha (1 - q)^\gamma \log q`, averaged over voxels.

    With :math:`\tilde p` the softmax of the softmax, smoothed one-hot targets of s = 1e-5 and the sum of all
    :math:`\tilde p` being 1: :math:`q = (1 - s)\,\tilde p_y + \frac{s}{K - 1} (1 - \tilde p_y) + s`.
    Alpha is 0.5 for every class, because that code gives 1 - alpha to all but class 0 and alpha to class 0.
    """
    check_inputs(logits, label)
    classes = logits.shape[1]
    own = full_precision(logits).softmax(1).softmax(1).gather(1, label.long())
    smoothed = (1 - SMOOTH) * own + SMOOTH / (classes - 1) * (1 - own) + SMOOTH
    return (-ALPHA * (1 - smoothed) ** GAMMA * smoothed.log()).mean()
