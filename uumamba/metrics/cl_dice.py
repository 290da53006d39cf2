"""Centreline Dice (clDice)."""

import numpy as np

from uumamba.metrics.mask_checks import check_2d_or_3d, check_pair
from uumamba.metrics.skeleton import skeletonize
from uumamba.types import Mask


def cl_dice(prediction: Mask, label: Mask) -> float:
    r"""Centreline Dice: 1 if each mask contains the other's skeleton.

    .. math:: \mathrm{clDice} = \frac{2\,T_p\,T_s}{T_p + T_s}, \quad
        T_p = \frac{|S_P \cap L|}{|S_P|}, \quad T_s = \frac{|S_L \cap P|}{|S_L|}

    :math:`S_P` and :math:`S_L` are the skeletons of prediction and label by
    :func:`~uumamba.metrics.skeleton.skeletonize`, empty only for an empty mask. Voxels are counted, so neither the
    spacing nor the thickness matters.

    One mask empty, or no skeleton voxel inside the other mask: 0. Both empty: NaN.

    Args:
        prediction: boolean array ``(Y, X)`` or ``(Z, Y, X)``, in any axis order.
        label: boolean array of the same shape.

    Raises:
        UsageError: a mask is not boolean, the shapes differ, or have neither two nor three axes.

    Example:
        >>> label = np.zeros((5, 12), bool)
        >>> label[1:4, 1:11] = True
        >>> thinner_and_shorter = np.zeros_like(label)
        >>> thinner_and_shorter[2, 2:7] = True
        >>> cl_dice(thinner_and_shorter, label)
        0.6666666666666666

    References:
        Shit et al., *clDice: a Novel Topology-Preserving Loss Function for Tubular Structure Segmentation*, CVPR 2021,
        arXiv:2003.07311.
        Differs from the paper: none for the metric; its loss replaces the skeleton by a soft one that can break.
    """
    check_pair(prediction, label)
    check_2d_or_3d(prediction, "prediction")
    return cl_dice_from_skeletons(prediction, label, skeletonize(prediction), skeletonize(label))


def cl_dice_from_skeletons(prediction: Mask, label: Mask, prediction_skeleton: Mask, label_skeleton: Mask) -> float:
    """Compute clDice from precomputed skeletons; NaN if both are empty."""
    if not prediction_skeleton.any() and not label_skeleton.any():
        return float("nan")
    precision = _compute_share_inside(prediction_skeleton, label)
    sensitivity = _compute_share_inside(label_skeleton, prediction)
    total = precision + sensitivity
    return 2 * precision * sensitivity / total if total else 0.0


def _compute_share_inside(skeleton: Mask, mask: Mask) -> float:
    size = int(np.count_nonzero(skeleton))
    return int(np.count_nonzero(skeleton & mask)) / size if size else 0.0
