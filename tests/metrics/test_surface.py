"""Surfaces and their distances: definition and references."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from uumamba.metrics import average_surface_distance, hausdorff_distance, surface_distances

SPACING_MM = (0.7, 1.5, 10.0)
masks = arrays(np.bool_, (4, 3, 3))


def test_the_distance_of_two_voxels_is_that_of_their_centres() -> None:
    prediction, label = np.zeros((5, 5, 5), bool), np.zeros((5, 5, 5), bool)
    prediction[1, 2, 2], label[3, 2, 2] = True, True
    distances = surface_distances(prediction, label, spacing_mm=(1.5, 1.0, 1.0))
    assert distances.prediction_to_label.tolist() == distances.label_to_prediction.tolist() == [3.0]


def test_a_surface_voxel_has_a_face_outside_the_mask() -> None:
    cube = np.zeros((7, 7, 7), bool)
    cube[1:6, 1:6, 1:6] = True
    # 5 x 5 x 5 = 125 voxels, of which 3 x 3 x 3 = 27 are inside. The border of the array is also outside.
    for mask in (cube, np.ones((5, 5, 5), bool)):
        assert surface_distances(mask, mask, spacing_mm=(1, 1, 1)).both.size == 2 * 98


@given(masks, masks, st.tuples(*[st.sampled_from([0.7, 1.0, 2.5])] * 3))
def test_distances_equal_those_of_all_pairs(
    distances_by_all_pairs: Callable[..., tuple[list[float], list[float]]],
    prediction: np.ndarray,
    label: np.ndarray,
    spacing_mm: tuple[float, ...],
) -> None:
    fast = surface_distances(prediction, label, spacing_mm=spacing_mm)
    slow = distances_by_all_pairs(prediction, label, spacing_mm)
    np.testing.assert_allclose(fast.prediction_to_label, slow[0], rtol=1e-12)
    np.testing.assert_allclose(fast.label_to_prediction, slow[1], rtol=1e-12)


# MONAI 1.6 calls itself with an argument that it deprecated in 1.5.
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_metrics_equal_those_of_monai(two_blobs: tuple[np.ndarray, np.ndarray]) -> None:
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    one_hot = [torch.from_numpy(mask)[None, None].float() for mask in two_blobs]
    options = {"include_background": True, "spacing": list(SPACING_MM)}
    theirs = compute_hausdorff_distance(*one_hot, percentile=95, **options).item()
    assert hausdorff_distance(*two_blobs, spacing_mm=SPACING_MM) == pytest.approx(theirs, rel=1e-5)
    theirs = compute_average_surface_distance(*one_hot, symmetric=True, **options).item()
    assert average_surface_distance(*two_blobs, spacing_mm=SPACING_MM) == pytest.approx(theirs, rel=1e-5)


def test_masks_may_have_two_dimensions() -> None:
    prediction, label = np.zeros((1, 9), bool), np.zeros((1, 9), bool)
    prediction[0, 0], label[0, 4] = True, True
    assert hausdorff_distance(prediction, label, spacing_mm=(1.0, 0.75)) == 3.0
