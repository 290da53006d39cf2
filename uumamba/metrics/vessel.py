"""Vessel scores: clDice, Betti errors and length error."""

from collections.abc import Sequence
from dataclasses import dataclass

from uumamba.metrics.box import bounding_box
from uumamba.metrics.centreline import centreline_length_mm, error_from_lengths, length_from_skeleton
from uumamba.metrics.cl_dice import cl_dice_from_skeletons
from uumamba.metrics.mask_checks import check_2d_or_3d, check_pair, check_spacing
from uumamba.metrics.skeleton import skeletonize
from uumamba.metrics.topology import betti_numbers, errors_from_betti_numbers
from uumamba.types import Mask


@dataclass(frozen=True)
class VesselScores:
    """Scores of one vessel.

    Args:
        cl_dice: :func:`~uumamba.metrics.cl_dice`.
        betti_errors: :func:`~uumamba.metrics.betti_errors`, of parts, tunnels and (in three dimensions) cavities.
        length_error: :func:`~uumamba.metrics.centreline_length_error`.
    """

    cl_dice: float
    betti_errors: tuple[float, ...]
    length_error: float


def vessel_scores(prediction: Mask, label: Mask, *, spacing_mm: Sequence[float]) -> VesselScores:
    """Compute the three scores of a vessel at once.

    The time is about half that of three calls. Each mask is thinned once, in the bounding box of both, and its cavities
    are counted once. Empty masks follow the rule of each score: a total miss has clDice 0, the other mask's Betti
    numbers, and the length error -1 (prediction empty) or ``inf`` (label empty); two empty masks give NaN.

    Args:
        prediction: boolean array ``(Y, X)`` or ``(Z, Y, X)``, in any axis order.
        label: boolean array of the same shape.
        spacing_mm: voxel edge lengths in the order of the array's axes.

    Raises:
        UsageError: a mask is not boolean, the shapes differ, have neither two nor three axes, or the spacing does not
            match them.

    Example:
        >>> import numpy as np
        >>> label = np.zeros((3, 3, 12), bool)
        >>> label[1, 1, 1:12] = True
        >>> broken = label.copy()
        >>> broken[1, 1, 6] = False
        >>> vessel_scores(broken, label, spacing_mm=(1.0, 1.0, 1.0))
        VesselScores(cl_dice=0.9523809523809523, betti_errors=(1.0, 0.0, 0.0), length_error=-0.2)
    """
    check_pair(prediction, label)
    check_2d_or_3d(prediction, "prediction")
    check_spacing(spacing_mm, prediction.ndim)
    box = bounding_box(prediction | label)
    prediction, label = prediction[box], label[box]
    skeleton, betti, length_mm = _measure_vessel(prediction, spacing_mm)
    label_skeleton, label_betti, label_length_mm = _measure_vessel(label, spacing_mm)
    return VesselScores(
        cl_dice=cl_dice_from_skeletons(prediction, label, skeleton, label_skeleton),
        betti_errors=errors_from_betti_numbers(betti, label_betti),
        length_error=error_from_lengths(length_mm, label_length_mm),
    )


def _measure_vessel(mask: Mask, spacing_mm: Sequence[float]) -> tuple[Mask, tuple[int, ...], float | None]:
    """Return skeleton, Betti numbers and centreline length of a mask.

    The length of an empty mask is None.
    """
    skeleton, betti = skeletonize(mask), betti_numbers(mask)
    if not mask.any():
        return skeleton, betti, None
    if mask.ndim == 3 and betti[2] == 0:
        return skeleton, betti, length_from_skeleton(mask, skeleton, spacing_mm=spacing_mm)
    return skeleton, betti, centreline_length_mm(mask, spacing_mm=spacing_mm)
