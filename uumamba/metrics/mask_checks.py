"""Checks of masks and spacing, shared by all metrics."""

import math
from collections.abc import Sequence

import numpy as np

from uumamba.runtime.errors import require
from uumamba.types import Mask


def check_pair(prediction: Mask, label: Mask) -> None:
    """Raise unless both masks are boolean and have one shape.

    Raises:
        UsageError: another type, or different shapes.

    Example:
        >>> check_pair(np.zeros((2, 3), bool), np.zeros((3, 2), bool))
        Traceback (most recent call last):
        uumamba.runtime.errors.UsageError: prediction: got (2, 3), expected the label's shape (3, 2).
    """
    check_mask(prediction, "prediction")
    check_mask(label, "label")
    shape = prediction.shape
    require(shape == label.shape, "prediction", got=shape, expected=f"the label's shape {label.shape}")


def check_mask(mask: Mask, name: str = "mask") -> None:
    """Raise unless a mask is a boolean array.

    Raises:
        UsageError: another type.
    """
    found = mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__
    require(found == np.bool_, name, got=found, expected="a boolean array, such as `labels == 3`")


def check_2d_or_3d(mask: Mask, name: str = "mask") -> None:
    """Raise unless a mask is boolean, with two or three axes.

    Betti numbers, skeletons and centrelines are defined for such masks only.

    Raises:
        UsageError: another type, or another number of axes.
    """
    check_mask(mask, name)
    require(mask.ndim in (2, 3), name, got=mask.shape, expected="a shape with two or three axes")


def check_spacing(spacing_mm: Sequence[float], dimensions: int) -> None:
    """Raise unless the spacing has one finite, positive length for each axis.

    Raises:
        UsageError: another number of lengths, or a length out of range.
    """
    lengths = tuple(float(length) for length in spacing_mm)
    require(
        len(lengths) == dimensions and all(math.isfinite(length) and length > 0 for length in lengths),
        "spacing_mm",
        got=lengths,
        expected=f"{dimensions} finite, positive lengths, one for each axis",
    )
