"""Dice coefficient."""

import numpy as np

from uumamba.metrics.mask_checks import check_pair
from uumamba.types import Mask


def dice_coefficient(prediction: Mask, label: Mask) -> float:
    r"""Overlap of two masks: 1 if equal, 0 if disjoint.

    .. math:: \mathrm{Dice} = \frac{2\,|P \cap L|}{|P| + |L|}

    One mask empty: 0. Both empty: NaN.

    Args:
        prediction: boolean array of any shape.
        label: boolean array of the same shape.

    Raises:
        UsageError: a mask is not boolean, or the shapes differ.

    Example:
        >>> dice_coefficient(np.array([True, True, False]), np.array([False, True, False]))
        0.6666666666666666

    References:
        Dice, *Measures of the Amount of Ecologic Association Between Species*, Ecology 26(3), 1945.
        Differs from the paper: none.
    """
    check_pair(prediction, label)
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(label))
    return 2 * int(np.count_nonzero(prediction & label)) / total if total else float("nan")
