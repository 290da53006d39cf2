"""Contrast about the mean."""

import torch
from torch import Generator, Tensor

from uumamba.data.augmentation.parameters import (
    Range,
    Values,
    check_probability,
    check_range,
    factor,
    per_sample,
    spatial_axes,
)


class Contrast:
    r"""Stretch each channel about its mean, :math:`m + f (x - m)`, then clip to the range that it had.

    Args:
        probability: of a sample being changed.
        multiplier: range of the factor :math:`f`; below 1 as often as above.

    Raises:
        UsageError: the probability or the range is invalid.
    """

    name = "contrast"

    def __init__(self, *, probability: float = 0.15, multiplier: Range = (0.75, 1.25)) -> None:
        self.probability = check_probability("contrast_probability", probability)
        self.multiplier = check_range("contrast", multiplier, least=0.0)

    def draw(self, generator: Generator, channels: int) -> Values | None:
        """Draw ``multiplier`` ``(channels,)``."""
        return {"multiplier": factor(generator, self.multiplier, channels)}

    def apply(self, image: Tensor, values: Values) -> Tensor:
        """Stretch and clip each channel."""
        axes = spatial_axes(image)
        mean = image.mean(dim=axes, keepdim=True)
        stretched = torch.lerp(mean.expand_as(image), image, per_sample(values["multiplier"], image))
        return stretched.clamp_(image.amin(dim=axes, keepdim=True), image.amax(dim=axes, keepdim=True))
