"""Gaussian noise."""

import pytest
import torch

from uumamba.data.augmentation.noise import Noise


def test_the_noise_has_the_drawn_standard_deviation_and_no_mean() -> None:
    values = {"std": torch.tensor([0.05, 0.2]), "seed": torch.tensor([1, 2])}
    noise = Noise().apply(torch.zeros(2, 1, 200, 200), values)
    for sample, std in zip(noise, values["std"], strict=True):
        # The mean of n values has error std / sqrt(n), their deviation std / sqrt(2 n); n = 40 000.
        assert abs(sample.mean()) < 4 * std / 200
        assert abs(sample.std() - std) < 4 * std / 282


def test_the_noise_follows_from_its_parameters_and_differs_between_samples() -> None:
    values = {"std": torch.tensor([0.1, 0.1]), "seed": torch.tensor([1, 2])}
    image = torch.randn(2, 3, 8, 8)
    noisy = Noise().apply(image, values)
    assert torch.equal(noisy, Noise().apply(image, values))
    assert not torch.allclose(noisy[0] - image[0], noisy[1] - image[1], atol=0.01)


def test_noise_of_deviation_zero_keeps_every_bit() -> None:
    image = torch.randn(1, 1, 8, 8)
    assert torch.equal(Noise().apply(image, {"std": torch.tensor([0.0]), "seed": torch.tensor([5])}), image)


def test_a_negative_deviation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"noise_std must not fall below 0.0, got \(-0.1, 0.1\)"):
        Noise(std=(-0.1, 0.1))
