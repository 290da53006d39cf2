"""What the three surface metrics share: the definition of a surface, references, invariances and empty masks."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from uumamba.metrics import (
    average_surface_distance,
    hausdorff_distance,
    normalized_surface_dice,
    surface_distances,
)

METRICS = {
    "hd95": hausdorff_distance,
    "hd": partial(hausdorff_distance, percentile=100),
    "assd": average_surface_distance,
    "nsd": partial(normalized_surface_dice, tolerance_mm=2.0),
}
SPACING_MM = (0.7, 1.5, 10.0)
masks = arrays(np.bool_, (4, 3, 3))


def two_blobs(shape: tuple[int, ...] = (14, 12, 9), *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two ellipsoids with ragged borders that overlap in part."""
    noise = np.random.default_rng(seed).normal(scale=0.1, size=(2, *shape))
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    offset = np.array([0.25, 0.0, -0.1]).reshape(3, 1, 1, 1)
    return np.linalg.norm(grid, axis=0) + noise[0] < 0.6, np.linalg.norm(grid - offset, axis=0) + noise[1] < 0.55


def test_two_voxels_three_millimetres_apart_are_three_millimetres_apart() -> None:
    prediction, label = np.zeros((5, 5, 5), bool), np.zeros((5, 5, 5), bool)
    prediction[1, 2, 2], label[3, 2, 2] = True, True
    distances = surface_distances(prediction, label, spacing_mm=(1.5, 1.0, 1.0))
    assert distances.prediction_to_label.tolist() == [3.0]
    assert distances.label_to_prediction.tolist() == [3.0]


def test_a_surface_voxel_has_a_face_on_the_outside() -> None:
    cube = np.zeros((7, 7, 7), bool)
    cube[1:6, 1:6, 1:6] = True
    # 5 x 5 x 5 = 125 voxels, of which 3 x 3 x 3 = 27 lie inside.
    assert surface_distances(cube, cube, spacing_mm=(1, 1, 1)).prediction_to_label.size == 98


def test_a_mask_that_the_field_of_view_cuts_off_ends_there() -> None:
    cube = np.ones((5, 5, 5), bool)
    assert surface_distances(cube, cube, spacing_mm=(1, 1, 1)).both.size == 2 * 98


@pytest.mark.parametrize("name", ["hd95", "hd", "assd"])
def test_distances_scale_with_the_spacing(name: str) -> None:
    prediction, label = two_blobs()
    once = METRICS[name](prediction, label, spacing_mm=SPACING_MM)
    twice = METRICS[name](prediction, label, spacing_mm=[2 * length for length in SPACING_MM])
    assert twice == pytest.approx(2 * once, rel=1e-12)


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
def test_metrics_equal_monais_on_overlapping_masks() -> None:
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    prediction, label = two_blobs()
    one_hot = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, label)]
    options = {"include_background": True, "spacing": list(SPACING_MM)}
    theirs = compute_hausdorff_distance(*one_hot, percentile=95, **options).item()
    assert hausdorff_distance(prediction, label, spacing_mm=SPACING_MM) == pytest.approx(theirs, rel=1e-5)
    theirs = compute_average_surface_distance(*one_hot, symmetric=True, **options).item()
    assert average_surface_distance(prediction, label, spacing_mm=SPACING_MM) == pytest.approx(theirs, rel=1e-5)


def test_two_dimensional_masks_are_served_as_well() -> None:
    prediction, label = np.zeros((1, 9), bool), np.zeros((1, 9), bool)
    prediction[0, 0], label[0, 4] = True, True
    assert hausdorff_distance(prediction, label, spacing_mm=(1.0, 0.75)) == 3.0
