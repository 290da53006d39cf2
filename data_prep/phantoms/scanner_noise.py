"""Noise and Hounsfield units of the phantoms' scanners."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def draw_smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], sigma: float | Sequence[float], *, truncate: float = 4.0
) -> NDArray[np.float32]:
    """White noise blurred by a Gaussian; its deviation is below 1, so scale it by ``noise.std()``.

    Args:
        rng: for the draws.
        shape: of the volume.
        sigma: of the Gaussian in voxels, for each axis or all.
        truncate: reach of the Gaussian, in ``sigma``.
    """
    return ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, truncate=truncate)


def to_hounsfield(image: NDArray[np.float32], lowest: int, highest: int) -> NDArray[np.int16]:
    """Round to whole Hounsfield units within the scanner's range."""
    return np.clip(np.rint(image), lowest, highest).astype(np.int16)
