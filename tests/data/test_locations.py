"""Random voxels of structures: number, and dependence on the key."""

import numpy as np
import torch

from uumamba.data.locations import draw_in_planes, sample_locations


def test_drawn_ordinals_count_the_voxels_in_order() -> None:
    mask = np.random.default_rng(0).random((6, 5, 4)) < 0.3
    mask[2] = False
    counts = [int(plane.sum()) for plane in mask]
    for wanted in (4, 1000):
        generator = torch.Generator().manual_seed(0)
        planes = draw_in_planes(counts, wanted, generator)
        found = [(plane, *np.argwhere(mask[plane])[each]) for plane, within in planes for each in within]
        ordinals = np.arange(sum(counts))
        if wanted == 4:
            ordinals = np.sort(torch.randperm(sum(counts), generator=generator.manual_seed(0))[:4].numpy())
        assert np.array_equal(found, np.argwhere(mask)[ordinals])


def test_locations_are_at_most_2000_per_class_and_depend_only_on_the_case() -> None:
    label = np.zeros((3, 40, 60), dtype=np.uint8)
    label[:2], label[2, :10] = 1, 3
    first = sample_locations(label, case_id="a")
    assert np.array_equal(label[tuple(first[:, 1:].T)], first[:, 0])
    assert np.bincount(first[:, 0]).tolist() == [0, 2000, 0, 600]
    assert len(np.unique(first, axis=0)) == 2600
    assert np.array_equal(first, sample_locations(label, case_id="a"))
    assert not np.array_equal(first, sample_locations(label, case_id="b"))
    assert sample_locations(np.zeros((2, 3, 4), np.uint8), case_id="a").shape == (0, 4)
