"""Contrast about the mean."""

import torch
from torch import Generator, Tensor

from uumamba.data.augmentation.draws import (
    Range,
    Values,
    check_probability,
    check_range,
    factor,
    fires,
    per_sample,
    spatial_axes,
)


class Contrast:
    r"""Stretch each channel about its mean, :math:`m + f (x - m)`, then clip to the range that it had.

    Args:
        probability: of a sample being changed.
        multiplier: range of the factor :math:`f`; below 1 as often as above.

    Raises:
        ValueError: the probability or the range makes no sense.
    """

    name = "contrast"

    def __init__(self, *, probability: float = 0.15, multiplier: Range = (0.75, 1.25)) -> None:
        self.probability = check_probability("contrast_probability", probability)
        self.multiplier = check_range("contrast", multiplier, least=0.0)

    def draw(self, generator: Generator, channels: int) -> Values | None:
        """``multiplier`` ``(channels,)``."""
        return (
            {"multiplier": factor(generator, self.multiplier, channels)} if fires(generator, self.probability) else None
        )

    def apply(self, image: Tensor, values: Values) -> Tensor:
        """The image with more or less contrast."""
        axes = spatial_axes(image)
        mean = image.mean(dim=axes, keepdim=True)
        lowest, highest = image.amin(dim=axes, keepdim=True), image.amax(dim=axes, keepdim=True)
        stretched = torch.lerp(mean.expand_as(image), image, per_sample(values["multiplier"].to(image), image))
        return stretched.clamp_(lowest, highest)
