"""Normalized surface Dice (NSD)."""

from collections.abc import Sequence

import numpy as np

from uumamba.metrics.surface import SurfaceDistances, surface_distances
from uumamba.runtime.errors import require
from uumamba.types import Mask

# A surface exactly at the tolerance must not depend on rounding: 3 x 0.1 is 0.30000000000000004.
_ROUNDING_MM = 1e-9


def normalized_surface_dice(
    prediction: Mask, label: Mask, *, spacing_mm: Sequence[float], tolerance_mm: float
) -> float:
    r"""Share of both surfaces within ``tolerance_mm`` of the other surface.

    .. math:: \mathrm{NSD}_\tau = \frac{|\{p \in \partial P : d(p, \partial L) \le \tau\}| +
        |\{l \in \partial L : d(l, \partial P) \le \tau\}|}{|\partial P| + |\partial L|}

    The surface is that of :func:`surface_distances`. One mask empty: 0. Both empty: NaN.

    Args:
        prediction: boolean array of any shape.
        label: boolean array of the same shape.
        spacing_mm: voxel edge lengths in the order of the array's axes.
        tolerance_mm: largest distance that counts as agreement, such as the variation between readers.

    Raises:
        UsageError: a mask is not boolean, the shapes differ, the spacing does not match the axes, or the tolerance is
            negative.

    Example:
        >>> prediction, label = np.zeros((9, 4), bool), np.zeros((9, 4), bool)
        >>> prediction[1, 2], label[7, 2] = True, True
        >>> normalized_surface_dice(prediction, label, spacing_mm=(0.5, 1.0), tolerance_mm=3.0)
        1.0
        >>> normalized_surface_dice(prediction, label, spacing_mm=(0.5, 1.0), tolerance_mm=2.9)
        0.0

    References:
        Nikolov et al., *Clinically Applicable Segmentation of Head and Neck Anatomy for Radiotherapy*,
        JMIR 23(7), 2021, arXiv:1809.04430.
        Differs from the paper: surface voxels are counted, where the paper weights surface elements by their area.
    """
    return surface_dice_from_distances(
        surface_distances(prediction, label, spacing_mm=spacing_mm), tolerance_mm=tolerance_mm
    )


def surface_dice_from_distances(distances: SurfaceDistances, *, tolerance_mm: float) -> float:
    """Compute the normalized surface Dice from precomputed distances."""
    require(tolerance_mm >= 0, "tolerance_mm", got=tolerance_mm, expected="a number of 0 or more")
    both = distances.both
    return float(np.mean(both <= tolerance_mm + _ROUNDING_MM)) if both.size else float("nan")
