"""Tissues of the heart phantom, with their labels and brightness."""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Millimetres = NDArray[np.float32]
"""A coordinate of each point of a plane."""
Tissues = NDArray[np.uint8]
"""A ``Tissue`` at each point."""


class Tissue(IntEnum):
    """Tissue at a point of the phantom."""

    AIR = 0
    LUNG = 1
    FAT = 2
    MUSCLE = 3
    MARROW = 4
    LIVER = 5
    SPLEEN = 6
    STOMACH = 7
    VESSEL = 8
    THIN_WALL = 9
    ATRIUM = 10
    RV_BLOOD = 11
    RV_TRABECULA = 12
    MYOCARDIUM = 13
    LV_BLOOD = 14
    PAPILLARY = 15


LABEL_OF_TISSUE = np.zeros(len(Tissue), dtype=np.uint8)
LABEL_OF_TISSUE[[Tissue.RV_BLOOD, Tissue.RV_TRABECULA]] = 1
LABEL_OF_TISSUE[Tissue.MYOCARDIUM] = 2
# In ACDC's labels the papillary muscles are part of the cavity.
LABEL_OF_TISSUE[[Tissue.LV_BLOOD, Tissue.PAPILLARY]] = 3


def draw_brightness(rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw the signal of each tissue, relative to blood.

    Ranges overlap as in cine MRI. The myocardium has 0.24 to 0.56 of the blood's signal (in ACDC 0.35 to 0.7 of the
    cavity's mean, which includes the dark papillary muscles).
    """
    myocardium = rng.uniform(0.24, 0.56)
    ranges = {
        Tissue.LUNG: (0.03, 0.16),
        Tissue.FAT: (0.70, 1.40),
        Tissue.MUSCLE: (0.18, 0.45),
        Tissue.MARROW: (0.35, 0.80),
        Tissue.LIVER: (0.20, 0.60),
        Tissue.SPLEEN: (0.30, 0.75),
        Tissue.STOMACH: (0.10, 1.10),
        Tissue.VESSEL: (0.75, 1.10),
        Tissue.THIN_WALL: (0.18, 0.35),
        Tissue.ATRIUM: (0.75, 1.00),
        Tissue.RV_BLOOD: (0.78, 1.02),
    }
    brightness = np.zeros(len(Tissue))
    for tissue, (low, high) in ranges.items():
        brightness[tissue] = rng.uniform(low, high)
    brightness[Tissue.LV_BLOOD] = 1.0
    brightness[Tissue.MYOCARDIUM] = myocardium
    brightness[Tissue.PAPILLARY] = myocardium * rng.uniform(0.95, 1.15)
    brightness[Tissue.RV_TRABECULA] = myocardium * rng.uniform(1.1, 1.5)
    return brightness.astype(np.float32)


def is_in_ellipse(
    u: Millimetres, v: Millimetres, centre: tuple[float, float], half_axes: tuple[float, float], margin_mm: float
) -> NDArray[np.bool_]:
    """Return whether each point is in an axis-aligned ellipse.

    Args:
        u: first coordinate of the points.
        v: second coordinate of the points.
        centre: centre of the ellipse.
        half_axes: half axes of the ellipse.
        margin_mm: added to the half axes.
    """
    along = (u - np.float32(centre[0])) / np.float32(half_axes[0] + margin_mm)
    across = (v - np.float32(centre[1])) / np.float32(half_axes[1] + margin_mm)
    return along * along + across * across < 1
