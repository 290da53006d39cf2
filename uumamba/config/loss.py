"""Losses by name."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, model_validator
from torch import nn

from uumamba.config.base import Config
from uumamba.losses import (
    CrossEntropyLoss,
    FocalLoss,
    ReleasedCodeLoss,
    SoftClDiceLoss,
    SoftDiceLoss,
    SummedLoss,
    UncertaintyWeightedLoss,
)
from uumamba.runtime.errors import require

TermName = Literal["region", "distribution", "pixel", "pixel_by_class", "centreline"]
RELEASED_TERMS: tuple[TermName, ...] = ("region", "distribution", "pixel")


class UncertaintyWeightedConfig(Config):
    """Loss terms with learned weights, logged under the same names.

    ``region`` is Dice, ``distribution`` cross entropy, ``pixel`` focal, ``pixel_by_class`` focal averaged over classes,
    ``centreline`` clDice. ``mode: released_code`` is the loss of UU-Mamba's released trainer: three terms with fixed
    weights, see :class:`uumamba.losses.ReleasedCodeLoss`.
    """

    name: Literal["uncertainty_weighted"]
    mode: Literal["learned", "released_code"] = "learned"
    terms: tuple[TermName, ...] = Field(RELEASED_TERMS, min_length=1)
    focal_gamma: NonNegativeFloat = 2.0
    batch_dice: bool = True
    centreline_iterations: NonNegativeInt = 5
    centreline_of: Literal["union", "each"] = "union"

    @model_validator(mode="after")
    def _check_terms(self) -> "UncertaintyWeightedConfig":
        is_released = self.mode == "released_code"
        require(
            self.terms == RELEASED_TERMS if is_released else len(set(self.terms)) == len(self.terms),
            "terms",
            got=self.terms,
            expected=f"{RELEASED_TERMS} in mode released_code" if is_released else "each term once",
        )
        return self

    def build(self) -> nn.Module:
        """Build the loss of the finest logits."""
        if self.mode == "released_code":
            return ReleasedCodeLoss(batch_dice=self.batch_dice)
        return UncertaintyWeightedLoss({name: self._term(name) for name in self.terms})

    def _term(self, name: TermName) -> nn.Module:
        match name:
            case "region":
                return SoftDiceLoss(batch_dice=self.batch_dice)
            case "distribution":
                return CrossEntropyLoss()
            case "pixel" | "pixel_by_class":
                return FocalLoss(gamma=self.focal_gamma, class_mean=name == "pixel_by_class")
            case "centreline":
                return SoftClDiceLoss(
                    iterations=self.centreline_iterations,
                    vessels_of=self.centreline_of,
                    batch_dice=self.batch_dice,
                )


class DiceCrossEntropyConfig(Config):
    """Unweighted sum of Dice and cross entropy, nnU-Net's loss."""

    name: Literal["dice_cross_entropy"]
    batch_dice: bool = True

    def build(self) -> nn.Module:
        return SummedLoss({"region": SoftDiceLoss(batch_dice=self.batch_dice), "distribution": CrossEntropyLoss()})


LossConfig = Annotated[UncertaintyWeightedConfig | DiceCrossEntropyConfig, Field(discriminator="name")]
