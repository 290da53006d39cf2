"""Volume of a mask."""

import math
from collections.abc import Sequence

import numpy as np

from uumamba.metrics.mask_checks import check_mask, check_spacing
from uumamba.types import Mask

MM3_PER_ML = 1000.0


def volume_ml(mask: Mask, *, spacing_mm: Sequence[float]) -> float:
    """Volume of a mask in millilitres: number of voxels times voxel volume.

    An empty mask has volume 0.

    Args:
        mask: boolean array of any shape.
        spacing_mm: voxel edge lengths in the order of the array's axes.

    Raises:
        UsageError: the mask is not boolean, or the spacing does not match the axes.

    Example:
        >>> volume_ml(np.ones((10, 10, 2), bool), spacing_mm=(1.0, 1.0, 5.0))
        1.0
    """
    check_mask(mask)
    check_spacing(spacing_mm, mask.ndim)
    return int(np.count_nonzero(mask)) * math.prod(float(length) for length in spacing_mm) / MM3_PER_ML
