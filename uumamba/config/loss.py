"""Losses by name, made of several terms."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from torch import nn

from uumamba.config.bind import read_default
from uumamba.losses import (
    CrossEntropyLoss,
    FocalLoss,
    RegionClDiceLoss,
    RegionCrossEntropyLoss,
    RegionDiceLoss,
    RegionFocalLoss,
    ReleasedCodeLoss,
    SoftClDiceLoss,
    SoftDiceLoss,
    SummedLoss,
    UncertaintyWeightedLoss,
)
from uumamba.runtime.errors import require
from uumamba.runtime.options import NonNegative, NonNegativeInt, check_options

Table = Sequence[Sequence[bool]]
TermName = Literal["region", "distribution", "pixel", "pixel_by_class", "centreline"]
RELEASED_TERMS: tuple[TermName, ...] = ("region", "distribution", "pixel")
BATCH_DICE: bool = read_default(ReleasedCodeLoss, "batch_dice")
FOCAL_GAMMA: float = read_default(FocalLoss, "gamma")
ITERATIONS: int = read_default(SoftClDiceLoss, "iterations")
VESSELS_OF: Literal["union", "each"] = read_default(SoftClDiceLoss, "vessels_of")


@check_options
def uncertainty_weighted(
    *,
    mode: Literal["learned", "released_code"] = "learned",
    terms: Sequence[TermName] = RELEASED_TERMS,
    focal_gamma: NonNegative = FOCAL_GAMMA,
    batch_dice: bool = BATCH_DICE,
    centreline_iterations: NonNegativeInt = ITERATIONS,
    centreline_of: Literal["union", "each"] = VESSELS_OF,
    membership: Table | None = None,
    ignore_label: int | None = None,
) -> nn.Module:
    """Make a loss of several terms with learned weights.

    Terms and weights are logged under the same names. The run supplies ``membership`` and ``ignore_label`` from the
    data set.

    Args:
        mode: learned weights, or the loss of UU-Mamba's released trainer, with fixed weights of three terms; see
            :class:`uumamba.losses.ReleasedCodeLoss`.
        terms: ``region`` is Dice, ``distribution`` cross entropy, ``pixel`` focal, ``pixel_by_class`` focal averaged
            over classes, ``centreline`` clDice.
        focal_gamma: exponent of the focal terms.
        batch_dice: compute Dice and clDice over the batch instead of each sample.
        centreline_iterations: erosions of clDice's skeleton.
        centreline_of: ``union`` of all structures, or ``each``.
        membership: table ``(classes, regions)`` of overlapping regions; None for classes with softmax.
        ignore_label: label of voxels that all terms leave out.
    """
    is_released = mode == "released_code"
    expected = f"{RELEASED_TERMS} in mode released_code" if is_released else "one or more terms, each once"
    fits = tuple(terms) == RELEASED_TERMS if is_released else terms and len(set(terms)) == len(terms)
    require(fits, "terms", got=tuple(terms), expected=expected)
    if is_released:
        require(membership is None, "mode", got=mode, expected="learned for overlapping regions")
        return ReleasedCodeLoss(batch_dice=batch_dice, ignore_label=ignore_label)
    dice, cross_entropy, focal, centreline = _choose_terms(membership, ignore_label)
    makers: dict[TermName, Callable[[], nn.Module]] = {
        "region": lambda: dice(batch_dice=batch_dice),
        "distribution": cross_entropy,
        "pixel": lambda: focal(gamma=focal_gamma),
        "pixel_by_class": lambda: focal(gamma=focal_gamma, class_mean=True),
        "centreline": lambda: centreline(
            iterations=centreline_iterations, vessels_of=centreline_of, batch_dice=batch_dice
        ),
    }
    return UncertaintyWeightedLoss({name: makers[name]() for name in terms})


@check_options
def dice_cross_entropy(
    *, batch_dice: bool = BATCH_DICE, membership: Table | None = None, ignore_label: int | None = None
) -> nn.Module:
    """Make the unweighted sum of Dice and cross entropy, nnU-Net's loss.

    Args:
        batch_dice: compute Dice over the batch instead of each sample.
        membership: as for :func:`uncertainty_weighted`.
        ignore_label: as for :func:`uncertainty_weighted`.
    """
    dice, cross_entropy, _, _ = _choose_terms(membership, ignore_label)
    return SummedLoss({"region": dice(batch_dice=batch_dice), "distribution": cross_entropy()})


def _choose_terms(membership: Table | None, ignore_label: int | None) -> list[Callable[..., nn.Module]]:
    """Return Dice, cross entropy, focal and clDice of classes or of regions."""
    of_classes: list[Any] = [SoftDiceLoss, CrossEntropyLoss, FocalLoss, SoftClDiceLoss]
    of_regions: list[Any] = [RegionDiceLoss, RegionCrossEntropyLoss, RegionFocalLoss, RegionClDiceLoss]
    if membership is None:
        return [partial(each, ignore_label=ignore_label) for each in of_classes]
    return [partial(each, membership, ignore_label=ignore_label) for each in of_regions]
