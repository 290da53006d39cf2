import numpy as np

from uumamba.metrics import normalized_surface_dice
from uumamba.metrics.normalized_surface_dice import surface_dice_from_distances
from uumamba.metrics.surface import SurfaceDistances


def test_surface_dice_is_the_share_of_both_surfaces_within_the_tolerance() -> None:
    distances = SurfaceDistances(np.array([0.0, 1.0, 2.0]), np.array([5.0]))
    # Two of four surface voxels are within 1 mm.
    assert surface_dice_from_distances(distances, tolerance_mm=1.0) == 0.5


def test_a_surface_exactly_at_the_tolerance_counts_in_spite_of_rounding() -> None:
    prediction, label = np.zeros((1, 9), bool), np.zeros((1, 9), bool)
    prediction[0, 0], label[0, 3] = True, True
    assert 3 * 0.1 > 0.3
    assert normalized_surface_dice(prediction, label, spacing_mm=(1.0, 0.1), tolerance_mm=0.3) == 1.0


def test_zero_tolerance_counts_only_shared_surface_voxels() -> None:
    prediction, label = np.zeros((1, 4), bool), np.zeros((1, 4), bool)
    prediction[0, :2], label[0, 1:3] = True, True
    assert normalized_surface_dice(prediction, label, spacing_mm=(1.0, 1.0), tolerance_mm=0.0) == 0.5
