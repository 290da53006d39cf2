"""Average surface distance (ASSD)."""

from collections.abc import Sequence

from uumamba.metrics.surface import SurfaceDistances, surface_distances
from uumamba.types import Mask


def average_surface_distance(prediction: Mask, label: Mask, *, spacing_mm: Sequence[float]) -> float:
    r"""Symmetric mean distance between two surfaces (ASSD), in millimetres.

    .. math:: \mathrm{ASSD} = \frac{\sum_{p \in \partial P} d(p, \partial L) + \sum_{l \in \partial L} d(l, \partial P)}
        {|\partial P| + |\partial L|}

    Every surface voxel of either mask has the same weight (as in MONAI; MedPy averages the means of both directions).
    The surface is that of :func:`surface_distances`. One mask empty: ``inf``. Both empty: NaN.

    Args:
        prediction: boolean array of any shape.
        label: boolean array of the same shape.
        spacing_mm: voxel edge lengths in the order of the array's axes.

    Raises:
        UsageError: a mask is not boolean, the shapes differ, or the spacing does not match the axes.

    Example:
        >>> import numpy as np
        >>> prediction, label = np.zeros((9, 4), bool), np.zeros((9, 4), bool)
        >>> prediction[1, 2], label[7, 2] = True, True
        >>> average_surface_distance(prediction, label, spacing_mm=(0.5, 1.0))
        3.0

    References:
        Heimann et al., *Comparison and Evaluation of Methods for Liver Segmentation From CT Datasets*,
        IEEE TMI 28(8), 2009.
        Differs from the paper: none.
    """
    return average_from_distances(surface_distances(prediction, label, spacing_mm=spacing_mm))


def average_from_distances(distances: SurfaceDistances) -> float:
    """Compute the average surface distance from precomputed distances."""
    both = distances.both
    return float(both.mean()) if both.size else float("nan")
