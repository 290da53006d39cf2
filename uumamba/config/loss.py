"""Objectives by name."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat
from torch import nn

from uumamba.config.base import Config


class UncertaintyWeightedConfig(Config):
    """Region, distribution and pixel terms with learned weights.

    ``mode: released_code`` minimises what UU-Mamba's released trainer minimised: fixed weights, see
    :class:`uumamba.losses.ReleasedCodeLoss`.
    """

    name: Literal["uncertainty_weighted"]
    mode: Literal["learned", "released_code"] = "learned"
    focal_gamma: NonNegativeFloat = 2.0
    batch_dice: bool = True

    def build(self) -> nn.Module:
        """The loss of the finest logits."""
        from uumamba.losses import (
            CrossEntropyLoss,
            FocalLoss,
            ReleasedCodeLoss,
            SoftDiceLoss,
            UncertaintyWeightedLoss,
        )

        if self.mode == "released_code":
            return ReleasedCodeLoss(batch_dice=self.batch_dice)
        return UncertaintyWeightedLoss(
            {
                "region": SoftDiceLoss(batch_dice=self.batch_dice),
                "distribution": CrossEntropyLoss(),
                "pixel": FocalLoss(gamma=self.focal_gamma),
            }
        )


class DiceCrossEntropyConfig(Config):
    """nnU-Net's plain sum of Dice and cross entropy, as a control."""

    name: Literal["dice_cross_entropy"]
    batch_dice: bool = True

    def build(self) -> nn.Module:
        """The loss of the finest logits."""
        from uumamba.losses import CrossEntropyLoss, SoftDiceLoss, SummedLoss

        return SummedLoss({"region": SoftDiceLoss(batch_dice=self.batch_dice), "distribution": CrossEntropyLoss()})


LossConfig = Annotated[UncertaintyWeightedConfig | DiceCrossEntropyConfig, Field(discriminator="name")]
