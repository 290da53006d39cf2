"""What every metric asks of its masks and spacing, said once."""

import math
from collections.abc import Sequence

import numpy as np

from uumamba.types import Mask


def check_pair(prediction: Mask, label: Mask) -> None:
    """Refuse masks that are not boolean or not of one shape.

    Raises:
        TypeError: a mask is not a boolean array.
        ValueError: the shapes differ.

    Example:
        >>> check_pair(np.zeros((2, 3), bool), np.zeros((3, 2), bool))
        Traceback (most recent call last):
        ValueError: prediction and label must lie on one grid, got shapes (2, 3) and (3, 2)
    """
    check_mask(prediction, "prediction")
    check_mask(label, "label")
    if prediction.shape != label.shape:
        raise ValueError(f"prediction and label must lie on one grid, got shapes {prediction.shape} and {label.shape}")


def check_mask(mask: Mask, name: str = "mask") -> None:
    """Refuse what is not a boolean array.

    Raises:
        TypeError: it is something else; the message says what.
    """
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        found = f"an array of {mask.dtype}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise TypeError(f"{name} must be a boolean array such as `labels == 3`, got {found}")


def check_flat_or_solid(mask: Mask, name: str = "mask") -> None:
    """Refuse what is not a boolean array of two or three axes: parts, tunnels and cavities are defined for those here.

    Raises:
        TypeError: it is not a boolean array.
        ValueError: it has another number of axes.
    """
    check_mask(mask, name)
    if mask.ndim not in (2, 3):
        raise ValueError(f"{name} must have two or three axes, got shape {mask.shape}")


def check_spacing(spacing_mm: Sequence[float], dimensions: int) -> None:
    """Refuse a spacing that does not give one finite, positive length an axis.

    Raises:
        ValueError: the message says what was found.
    """
    lengths = tuple(float(length) for length in spacing_mm)
    if len(lengths) != dimensions:
        raise ValueError(f"spacing_mm must give one length an axis, got {lengths} for {dimensions} axes")
    if not all(math.isfinite(length) and length > 0 for length in lengths):
        raise ValueError(f"spacing_mm must be finite and positive, got {lengths}")
