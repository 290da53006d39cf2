"""Mirroring of image and label, and the exchange of labels."""

import torch

from uumamba.data.augmentation import Drawn, Mirror


def test_flips_of_image_and_label_exchange_labels_only_along_axes_with_swaps() -> None:
    image, label = torch.randn(4, 2, 3, 4, 5), torch.randint(0, 5, (4, 1, 3, 4, 5))
    before = label.clone()
    mirror = Mirror(dimensions=3, axes=(2, 0), probability=0.5, swaps={0: [(1, 3), (2, 4)]})
    flips = Drawn(rows=(0, 1, 3), values={"flip": torch.tensor([[True, False], [False, True], [True, True]])})
    flipped, swapped = mirror.apply(image, label, flips)
    exchanged = torch.tensor([0, 3, 4, 1, 2])
    # Spatial axis 2 is axis 3 of a sample with a channel axis.
    for row, axes, table in (
        (0, (3,), torch.arange(5)),
        (1, (1,), exchanged),
        (2, (), torch.arange(5)),
        (3, (1, 3), exchanged),
    ):
        assert torch.equal(flipped[row], image[row].flip(axes))
        assert torch.equal(swapped[row], table[label[row].flip(axes)])
    again = mirror.apply(flipped, swapped, flips)
    assert all(torch.equal(*pair) for pair in zip(again, (image, label), strict=True))
    assert torch.equal(label, before), "the given tensors are unchanged"
