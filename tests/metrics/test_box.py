import numpy as np

from uumamba.metrics.box import bounding_box


def test_the_bounding_box_contains_every_voxel_and_one_on_each_side() -> None:
    mask = np.random.default_rng(0).random((9, 8, 7)) < 0.01
    box = bounding_box(mask)
    assert mask[box].sum() == mask.sum() > 0
    assert all(mask[box].take(side, axis).any() for axis in range(3) for side in (0, -1))


def test_the_bounding_box_of_an_empty_mask_is_empty_along_every_axis() -> None:
    assert bounding_box(np.zeros((3, 4, 5), bool)) == (slice(0, 0),) * 3
