"""Mirroring, and the labels that it exchanges."""

import torch

from uumamba.data.augmentation import Drawn, Mirror


def test_the_named_axes_are_flipped_in_image_and_label() -> None:
    image, label = torch.randn(2, 2, 3, 4, 5), torch.randint(0, 3, (2, 1, 3, 4, 5))
    flip = Drawn(rows=(1,), values={"flip": torch.tensor([[True, False]])})
    mirror = Mirror(dimensions=3, axes=(2, 0))
    flipped, flipped_label = mirror.apply(image, label, flip)
    assert torch.equal(flipped[0], image[0])
    assert torch.equal(flipped[1], image[1].flip(3))  # spatial axis 2 of a sample with a channel axis
    assert torch.equal(flipped_label[1], label[1].flip(3))
    assert all(
        torch.equal(*pair) for pair in zip(mirror.apply(flipped, flipped_label, flip), (image, label), strict=True)
    )


def test_a_flip_along_an_axis_with_swaps_exchanges_the_labels_and_no_other_flip_does() -> None:
    image, label = torch.randn(4, 1, 3, 4), torch.randint(0, 5, (4, 1, 3, 4))
    before = label.clone()
    mirror = Mirror(dimensions=2, axes=(0, 1), swaps={1: [(1, 3), (2, 4)]})
    flips = [[False, True], [True, False], [True, True]]
    flipped, swapped = mirror.apply(image, label, Drawn(rows=(0, 1, 2), values={"flip": torch.tensor(flips)}))
    exchanged = torch.tensor([0, 3, 4, 1, 2])
    assert torch.equal(swapped[0], exchanged[label[0].flip(2)])
    assert torch.equal(swapped[1], label[1].flip(1))
    assert torch.equal(swapped[2], exchanged[label[2].flip(1, 2)])
    assert torch.equal(swapped[3], label[3])
    assert torch.equal(flipped[2], image[2].flip(1, 2))
    assert torch.equal(label, before)
