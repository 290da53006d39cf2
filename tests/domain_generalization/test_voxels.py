"""A draw of voxels: so many of each class, none twice, none ignored."""

import torch
from torch import Generator

from uumamba.domain_generalization import stratified_voxels


def drawn(label: torch.Tensor, count: int, *, seed: int = 0, ignore: int | None = None) -> list[tuple[int, int]]:
    generator = Generator().manual_seed(seed)
    images, voxels = stratified_voxels(label, voxels_a_class=count, generator=generator, ignore_label=ignore)
    return list(zip(images.tolist(), voxels.tolist(), strict=True))


def test_every_class_of_every_image_gives_as_many_as_asked_or_all_that_it_has() -> None:
    label = torch.zeros(2, 1000, dtype=torch.int64)
    label[0, :3], label[1, 500:600] = 1, 2
    found = drawn(label, 10)
    assert len(set(found)) == len(found)
    counts = {(image, value): 0 for image in (0, 1) for value in (0, 1, 2)}
    for image, voxel in found:
        counts[image, int(label[image, voxel])] += 1
    assert counts == {(0, 0): 10, (0, 1): 3, (0, 2): 0, (1, 0): 10, (1, 1): 0, (1, 2): 10}


def test_a_draw_is_the_generator_s_alone() -> None:
    label = torch.zeros(1, 1000, dtype=torch.int64)
    assert drawn(label, 10) == drawn(label, 10)
    assert drawn(label, 10) != drawn(label, 10, seed=1)


def test_ignored_voxels_are_never_drawn_and_nothing_is_left_of_an_ignored_image() -> None:
    label = torch.tensor([[255, 255, 0, 1], [255, 255, 255, 255]])
    assert drawn(label, 9, ignore=255) == [(0, 2), (0, 3)]


def test_all_samples_of_a_classifier_are_taken_but_the_ignored() -> None:
    label = torch.tensor([[1], [0], [1], [7]])
    assert drawn(label, 1) == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert drawn(label, 1, ignore=7) == [(0, 0), (1, 0), (2, 0)]
