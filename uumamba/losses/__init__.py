"""Segmentation losses ``loss(logits, label) -> scalar``, smallest for a perfect prediction."""

from uumamba.losses.cl_dice import SoftClDiceLoss
from uumamba.losses.cross_entropy import CrossEntropyLoss
from uumamba.losses.deep_supervision import DeepSupervisionLoss
from uumamba.losses.dice import SoftDiceLoss
from uumamba.losses.focal import FocalLoss
from uumamba.losses.region_losses import RegionClDiceLoss, RegionCrossEntropyLoss, RegionDiceLoss, RegionFocalLoss
from uumamba.losses.released_code import ReleasedCodeLoss
from uumamba.losses.summed import SummedLoss
from uumamba.losses.uncertainty import UncertaintyWeightedLoss

__all__ = [
    "CrossEntropyLoss",
    "DeepSupervisionLoss",
    "FocalLoss",
    "RegionClDiceLoss",
    "RegionCrossEntropyLoss",
    "RegionDiceLoss",
    "RegionFocalLoss",
    "ReleasedCodeLoss",
    "SoftClDiceLoss",
    "SoftDiceLoss",
    "SummedLoss",
    "UncertaintyWeightedLoss",
]


def __dir__() -> list[str]:
    return __all__
