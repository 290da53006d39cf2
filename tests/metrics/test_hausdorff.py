import numpy as np

from uumamba.metrics import hausdorff_distance
from uumamba.metrics.hausdorff import hausdorff_from_distances
from uumamba.metrics.surface import SurfaceDistances


def test_hausdorff_of_a_cube_shifted_by_one_voxel_is_one_spacing() -> None:
    prediction, label = np.zeros((9, 9, 9), bool), np.zeros((9, 9, 9), bool)
    prediction[2:6, 2:6, 2:6] = True
    label[3:7, 2:6, 2:6] = True
    assert hausdorff_distance(prediction, label, spacing_mm=(2.5, 1, 1), percentile=100) == 2.5


def test_hausdorff_is_the_larger_percentile_of_both_directions() -> None:
    one_way, other_way = np.arange(101.0), np.zeros(1000)
    # The 95th percentile of 0, 1, ..., 100 is 95; pooling both directions first would give 46 or less.
    assert hausdorff_from_distances(SurfaceDistances(one_way, other_way), percentile=95) == 95.0
    assert hausdorff_from_distances(SurfaceDistances(other_way, one_way), percentile=95) == 95.0


def test_hausdorff_interpolates_between_the_two_nearest_ranks() -> None:
    distances = SurfaceDistances(np.array([0.0, 1.0]), np.zeros(2))
    assert hausdorff_from_distances(distances, percentile=25) == 0.25


def test_a_lower_percentile_ignores_one_distant_voxel() -> None:
    label = np.zeros((30, 30), bool)
    label[5:15, 5:15] = True
    prediction = label.copy()
    prediction[29, 10] = True
    # The distant voxel is 29 - 14 = 15 voxels away; it is one of 37 surface voxels, less than 5 per cent.
    assert hausdorff_distance(prediction, label, spacing_mm=(1, 1), percentile=100) == 15.0
    assert hausdorff_distance(prediction, label, spacing_mm=(1, 1), percentile=95) == 0.0
