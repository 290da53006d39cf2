"""Loss of UU-Mamba's released code, including its errors."""

import math

from torch import Tensor, nn

from uumamba.losses.cross_entropy import CrossEntropyLoss
from uumamba.losses.dice import SoftDiceLoss
from uumamba.losses.inputs import check_inputs, upcast_half

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

    Raises:
        UsageError: the shapes do not match.

    Example:
        >>> import torch
        >>> loss = ReleasedCodeLoss()(torch.zeros(2, 4, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.long))
        >>> loss.shape
        torch.Size([])

    References:
        Tsai et al., *UU-Mamba: Uncertainty-aware U-Mamba for Cardiac Image Segmentation*, 2024, arXiv:2405.17496.
        Differs from the paper: the weights are learned in the paper, but not in the released code.
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
    r"""Focal term of the released code, averaged over voxels.

    .. math:: -\alpha (1 - q)^\gamma \log q, \qquad q = (1 - s)\,\tilde p_y + \frac{s}{K - 1} (1 - \tilde p_y) + s

    :math:`\tilde p` is the softmax of the softmax, and s = 1e-5 smooths the one-hot targets. Alpha is 0.5 for every
    class, because that code gives alpha to class 0 and 1 - alpha to all other classes.
    """
    check_inputs(logits, label)
    classes = logits.shape[1]
    own = upcast_half(logits).softmax(1).softmax(1).gather(1, label.long())
    smoothed = (1 - SMOOTH) * own + SMOOTH / (classes - 1) * (1 - own) + SMOOTH
    return (-ALPHA * (1 - smoothed) ** GAMMA * smoothed.log()).mean()
