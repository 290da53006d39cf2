"""Contrast."""

import torch

from uumamba.data.augmentation.contrast import Contrast


def test_contrast_stretches_about_the_mean_and_clips_to_the_old_range() -> None:
    image = torch.tensor([0.0, 4.0, 5.0, 11.0]).reshape(1, 1, 2, 2)  # mean 5
    more = Contrast().apply(image, {"multiplier": torch.tensor([[2.0]])})
    less = Contrast().apply(image, {"multiplier": torch.tensor([[0.5]])})
    assert more.flatten().tolist() == [0.0, 3.0, 5.0, 11.0]  # -5 and 17 are clipped
    assert less.flatten().tolist() == [2.5, 4.5, 5.0, 8.0]


def test_a_factor_of_one_keeps_every_bit() -> None:
    image = torch.randn(2, 2, 5, 6, 7)
    assert torch.equal(Contrast().apply(image, {"multiplier": torch.ones(2, 2)}), image)
