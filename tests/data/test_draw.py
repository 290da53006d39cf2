"""A draw is of the wanted size, without repeats, and the same for the same generator."""

import numpy as np
import torch

from uumamba.data.draw import draw_ordinals, drawn_in_planes


def test_all_are_drawn_where_there_are_no_more_and_else_so_many_different_ones() -> None:
    assert draw_ordinals(5, 5, torch.Generator()).tolist() == [0, 1, 2, 3, 4]
    drawn = [draw_ordinals(900, 50, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert np.array_equal(np.unique(drawn[0]), drawn[0])
    assert len(drawn[0]) == 50
    assert drawn[0].max() < 900
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_each_is_as_likely_as_another() -> None:
    counts = np.zeros(10)
    for seed in range(2000):
        counts[draw_ordinals(10, 3, torch.Generator().manual_seed(seed))] += 1
    # 2000 x 3 / 10 = 600, with a standard deviation of sqrt(2000 x 0.3 x 0.7) = 20.
    assert np.abs(counts - 600).max() < 80


def test_ordinals_are_those_of_the_voxels_in_order() -> None:
    mask = np.random.default_rng(0).random((6, 5, 4)) < 0.3
    mask[2] = False
    ordinals = np.array([0, 3, 4, 11])
    counts = [int(plane.sum()) for plane in mask]
    planes = drawn_in_planes(counts, ordinals)
    found = [(plane, *np.argwhere(mask[plane])[each]) for plane, within in planes for each in within]
    assert np.array_equal(found, np.argwhere(mask)[ordinals])
