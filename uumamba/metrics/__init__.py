"""Metrics on one structure, from boolean arrays.

The result is a float; the spacing is in millimetres, in array-axis order.

A total miss (exactly one mask empty) is ``inf`` for distances and 0 for overlaps; two empty masks give NaN. Metrics of
a vessel's topology and length document their own values for a miss.
"""

from uumamba.metrics.average_surface_distance import average_surface_distance
from uumamba.metrics.centreline import centreline_length_error, centreline_length_mm
from uumamba.metrics.cl_dice import cl_dice
from uumamba.metrics.dice import dice_coefficient
from uumamba.metrics.hausdorff import hausdorff_distance
from uumamba.metrics.normalized_surface_dice import normalized_surface_dice
from uumamba.metrics.skeleton import skeletonize
from uumamba.metrics.surface import SurfaceDistances, surface_distances
from uumamba.metrics.topology import betti_errors, betti_numbers
from uumamba.metrics.vessel import VesselScores, vessel_scores
from uumamba.metrics.volume import volume_ml

__all__ = [
    "SurfaceDistances",
    "VesselScores",
    "average_surface_distance",
    "betti_errors",
    "betti_numbers",
    "centreline_length_error",
    "centreline_length_mm",
    "cl_dice",
    "dice_coefficient",
    "hausdorff_distance",
    "normalized_surface_dice",
    "skeletonize",
    "surface_distances",
    "vessel_scores",
    "volume_ml",
]


def __dir__() -> list[str]:
    return __all__
