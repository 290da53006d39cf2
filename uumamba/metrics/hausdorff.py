"""Hausdorff distance: how far the worst part of a surface lies from the other surface."""

from collections.abc import Sequence

import numpy as np

from uumamba.metrics.surface import DistancesMm, SurfaceDistances, surface_distances
from uumamba.types import Mask


def hausdorff_distance(
    prediction: Mask, label: Mask, *, spacing_mm: Sequence[float], percentile: float = 95.0
) -> float:
    r"""Percentile of the distances between two surfaces, in millimetres; 100 is the Hausdorff distance itself.

    .. math:: \mathrm{HD}_q = \max\left(Q_q\{d(p, \partial L) : p \in \partial P\},
        Q_q\{d(l, \partial P) : l \in \partial L\}\right)

    The percentile is taken in each direction, with linear interpolation, and the greater one counts (as in MONAI and
    ``surface-distance``; MedPy pools the directions first). The surface is that of :func:`surface_distances`.

    One mask empty: ``inf``. Both empty: NaN. MONAI gives NaN for a missed structure, which a later mean drops without
    a word; here the miss stays visible.

    Args:
        prediction: boolean array of any shape.
        label: boolean array of the same shape.
        spacing_mm: voxel edge lengths in the order of the array's axes.
        percentile: from 0 to 100.

    Raises:
        TypeError: a mask is not boolean.
        ValueError: the shapes differ, the spacing does not fit the axes, or the percentile is out of range.

    Example:
        >>> prediction, label = np.zeros((9, 4), bool), np.zeros((9, 4), bool)
        >>> prediction[1, 2], label[7, 2] = True, True
        >>> hausdorff_distance(prediction, label, spacing_mm=(0.5, 1.0))
        3.0

    References:
        Huttenlocher, Klanderman & Rucklidge, *Comparing Images Using the Hausdorff Distance*, IEEE TPAMI 15(9), 1993.
        Differs from the paper: a percentile in place of the rank, and surfaces in place of point sets.
    """
    return hausdorff_of(surface_distances(prediction, label, spacing_mm=spacing_mm), percentile=percentile)


def hausdorff_of(distances: SurfaceDistances, *, percentile: float = 95.0) -> float:
    """The same from distances already computed."""
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile must lie between 0 and 100, got {percentile}")
    if not distances.both.size:
        return float("nan")
    return max(
        _percentile(direction, percentile)
        for direction in (distances.prediction_to_label, distances.label_to_prediction)
        if direction.size
    )


def _percentile(direction: DistancesMm, percentile: float) -> float:
    # Interpolating between two infinities would give NaN.
    return float("inf") if np.isinf(direction).any() else float(np.percentile(direction, percentile))
