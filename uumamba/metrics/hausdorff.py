"""Hausdorff distance and its percentiles."""

from collections.abc import Sequence

import numpy as np

from uumamba.metrics.surface import DistancesMm, SurfaceDistances, surface_distances
from uumamba.runtime.errors import require
from uumamba.types import Mask


def hausdorff_distance(
    prediction: Mask, label: Mask, *, spacing_mm: Sequence[float], percentile: float = 95.0
) -> float:
    r"""Percentile of the distances between two surfaces, in millimetres.

    Percentile 100 is the Hausdorff distance.

    .. math:: \mathrm{HD}_q = \max\left(Q_q\{d(p, \partial L) : p \in \partial P\},
        Q_q\{d(l, \partial P) : l \in \partial L\}\right)

    The result is the larger percentile of both directions, with linear interpolation (as in MONAI and
    ``surface-distance``; MedPy pools the directions first). The surface is that of :func:`surface_distances`.

    One mask empty: ``inf``. Both empty: NaN. MONAI returns NaN for a missed structure, which a later mean drops
    silently.

    Args:
        prediction: boolean array of any shape.
        label: boolean array of the same shape.
        spacing_mm: voxel edge lengths in the order of the array's axes.
        percentile: from 0 to 100.

    Raises:
        UsageError: a mask is not boolean, the shapes differ, the spacing does not match the axes, or the percentile is
            out of range.

    Example:
        >>> prediction, label = np.zeros((9, 4), bool), np.zeros((9, 4), bool)
        >>> prediction[1, 2], label[7, 2] = True, True
        >>> hausdorff_distance(prediction, label, spacing_mm=(0.5, 1.0))
        3.0

    References:
        Huttenlocher, Klanderman & Rucklidge, *Comparing Images Using the Hausdorff Distance*, IEEE TPAMI 15(9), 1993.
        Differs from the paper: a percentile instead of the rank, and surfaces instead of point sets.
    """
    return hausdorff_from_distances(surface_distances(prediction, label, spacing_mm=spacing_mm), percentile=percentile)


def hausdorff_from_distances(distances: SurfaceDistances, *, percentile: float = 95.0) -> float:
    """Compute the larger percentile of both directions from precomputed distances."""
    require(0 <= percentile <= 100, "percentile", got=percentile, expected="a number from 0 to 100")
    if not distances.both.size:
        return float("nan")
    return max(
        _percentile(direction, percentile)
        for direction in (distances.prediction_to_label, distances.label_to_prediction)
        if direction.size
    )


def _percentile(direction: DistancesMm, percentile: float) -> float:
    # Interpolation between two infinities would give NaN.
    return float("inf") if np.isinf(direction).any() else float(np.percentile(direction, percentile))
