"""Brightness."""

import torch

from uumamba.data.augmentation.brightness import Brightness


def test_each_channel_is_multiplied_by_its_own_factor() -> None:
    image = torch.randn(2, 2, 4, 5)
    multiplier = torch.tensor([[0.8, 1.0], [1.2, 1.1]])
    bright = Brightness().apply(image, {"multiplier": multiplier})
    for sample in range(2):
        for channel in range(2):
            assert torch.equal(bright[sample, channel], image[sample, channel] * multiplier[sample, channel])
