import numpy as np

from uumamba.metrics import average_surface_distance
from uumamba.metrics.average_surface_distance import average_from_distances
from uumamba.metrics.surface import SurfaceDistances


def test_every_surface_voxel_has_the_same_weight_in_the_average() -> None:
    # Five distances in all: (3 + 0 + 0 + 0 + 1) / 5. The mean of the directions' means would be (3 + 0.25) / 2.
    assert average_from_distances(SurfaceDistances(np.array([3.0]), np.array([0.0, 0.0, 0.0, 1.0]))) == 0.8


def test_average_surface_distance_of_parallel_lines_is_their_distance() -> None:
    prediction, label = np.zeros((6, 8), bool), np.zeros((6, 8), bool)
    prediction[1], label[5] = True, True
    assert average_surface_distance(prediction, label, spacing_mm=(0.5, 1.0)) == 2.0
