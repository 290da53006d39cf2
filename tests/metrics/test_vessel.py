import itertools
from collections.abc import Callable

import numpy as np

from uumamba.metrics import betti_errors, centreline_length_error, cl_dice, vessel_scores

SPACING_MM = (0.5, 0.8, 1.1)


def test_the_scores_equal_those_of_the_three_metrics(torus: Callable[..., np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    ring = torus(ring_radius=6, tube_radius=2)
    shell = np.pad(np.ones((5, 5, 5), bool), 2)
    shell[4, 4, 4] = False
    empty = np.zeros((7, 9, 8), bool)
    noise = [rng.random(empty.shape) < density for density in (0.1, 0.5)]
    pairs = [(ring, np.roll(ring, 1, axis=2)), (shell, np.roll(shell, 1, axis=0)), (ring, ~ring)]
    pairs += itertools.product([*noise, empty], repeat=2)
    for prediction, label in pairs:
        found = vessel_scores(prediction, label, spacing_mm=SPACING_MM)
        length_error = centreline_length_error(prediction, label, spacing_mm=SPACING_MM)
        expected = (cl_dice(prediction, label), *betti_errors(prediction, label), length_error)
        np.testing.assert_array_equal((found.cl_dice, *found.betti_errors, found.length_error), expected)


def test_a_flat_vessel_has_two_betti_errors_and_the_length_of_the_flat_metric() -> None:
    label = np.zeros((5, 12), bool)
    label[1:4, 1:11] = True
    ring = label.copy()
    ring[2, 5] = False
    found = vessel_scores(ring, label, spacing_mm=(1.0, 2.0))
    assert found.betti_errors == (0.0, 1.0)
    assert found.length_error == centreline_length_error(ring, label, spacing_mm=(1.0, 2.0))


def test_a_cut_ring_lacks_a_tunnel_and_little_length(torus: Callable[..., np.ndarray]) -> None:
    ring = torus(ring_radius=8, tube_radius=2)
    cut = ring.copy()
    middle = ring.shape[1] // 2
    cut[:, middle - 1 : middle + 2, middle:] = False
    found = vessel_scores(cut, ring, spacing_mm=(1.0, 1.0, 1.0))
    assert found.betti_errors == (0.0, 1.0, 0.0)
    # Three of about 50 voxels around the ring are missing in the prediction: only the label's skeleton has them.
    assert 0.95 < found.cl_dice < 1
    assert -0.12 < found.length_error < 0
