"""Noise and Hounsfield units of the phantoms' scanners."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Field = NDArray[np.float32]
"""A number per voxel: a distance in millimetres, Hounsfield units or a share from 0 to 1."""


def draw_smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], sigma: float | Sequence[float], *, truncate: float = 4.0
) -> Field:
    """Draw white noise blurred by a Gaussian.

    Its standard deviation is below 1; divide by ``noise.std()`` to scale it.

    Args:
        rng: generator of the noise.
        shape: shape of the volume.
        sigma: standard deviation of the Gaussian in voxels, for each axis or all.
        truncate: radius of the Gaussian, in ``sigma``.
    """
    return ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, truncate=truncate)


def round_to_hounsfield(image: Field, lowest: int, highest: int) -> NDArray[np.int16]:
    """Round and clip an image to integers of the scanner's range."""
    return np.clip(np.rint(image), lowest, highest).astype(np.int16)
