"""Additive Gaussian noise."""

import torch
from torch import Generator, Tensor

from uumamba.data.augmentation.parameters import Range, Values, check_probability, check_range, uniform


class Noise:
    """Add independent Gaussian noise of a drawn standard deviation to every voxel and channel.

    The noise itself is drawn on the CPU from a seed that belongs to the parameters, so it is the same on every device.

    Args:
        probability: of a sample being changed.
        std: range of the standard deviation, in units of the normalised image.

    Raises:
        UsageError: the probability or the range is invalid.
    """

    name = "noise"

    def __init__(self, *, probability: float = 0.1, std: Range = (0.0, 0.1)) -> None:
        self.probability = check_probability("noise_probability", probability)
        self.std = check_range("noise_std", std, least=0.0)

    def draw(self, generator: Generator, channels: int) -> Values | None:
        """Draw ``std`` and the ``seed`` of the noise."""
        return {"std": uniform(generator, self.std), "seed": torch.randint(2**62, (), generator=generator)}

    def apply(self, image: Tensor, values: Values) -> Tensor:
        """Add the noise."""
        noisy = image.clone()
        for sample, std, seed in zip(noisy, values["std"].tolist(), values["seed"].tolist(), strict=True):
            noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(seed))
            sample.add_(noise.to(sample), alpha=std)
        return noisy
