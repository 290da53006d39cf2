"""Metrics on one structure: boolean arrays in, a float out; spacing in array-axis order, in millimetres.

A total miss (exactly one mask empty) is ``inf`` for distances and 0 for overlaps; two empty masks give NaN.
"""

from uumamba.metrics.average_surface_distance import average_surface_distance
from uumamba.metrics.dice import dice_coefficient
from uumamba.metrics.hausdorff import hausdorff_distance
from uumamba.metrics.normalized_surface_dice import normalized_surface_dice
from uumamba.metrics.surface import SurfaceDistances, surface_distances
from uumamba.metrics.volume import volume_ml

__all__ = [
    "SurfaceDistances",
    "average_surface_distance",
    "dice_coefficient",
    "hausdorff_distance",
    "normalized_surface_dice",
    "surface_distances",
    "volume_ml",
]
