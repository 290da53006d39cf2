"""Gamma correction, plain and on the inverted image."""

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


class Gamma:
    r"""Raise each channel, scaled to 0 to 1, to a drawn power, and restore its mean and standard deviation.

    :math:`u^\gamma` with :math:`u = (x - \min x) / (\max x - \min x)`; inverted, :math:`1 - (1 - u)^\gamma`, which
    bends the bright end instead of the dark one. A constant channel stays as it is.

    Args:
        probability: of a sample being changed.
        gamma: range of the power; below 1 as often as above.
        inverted: bend the bright end.

    Raises:
        UsageError: the probability or the range is invalid.
    """

    def __init__(self, *, probability: float = 0.3, gamma: Range = (0.7, 1.5), inverted: bool = False) -> None:
        self.name = "inverted_gamma" if inverted else "gamma"
        self.probability = check_probability(f"{self.name}_probability", probability)
        self.gamma = check_range("gamma", gamma, above=0.0)
        self.inverted = inverted

    def draw(self, generator: Generator, channels: int) -> Values | None:
        """Draw ``gamma`` ``(channels,)``."""
        return {"gamma": factor(generator, self.gamma, channels)}

    def apply(self, image: Tensor, values: Values) -> Tensor:
        """Bend each channel."""
        axes = spatial_axes(image)
        lowest, highest = image.amin(dim=axes, keepdim=True), image.amax(dim=axes, keepdim=True)
        origin = highest if self.inverted else lowest
        # Dividing by the signed extent maps both ways onto 0 to 1; the sign drops out again below.
        extent = (highest - lowest).clamp(min=1e-7) * (-1.0 if self.inverted else 1.0)
        bent = ((image - origin) / extent).clamp_(0.0, 1.0).pow_(per_sample(values["gamma"], image)).mul_(extent)
        std, mean = image.std(dim=axes, keepdim=True, correction=0), image.mean(dim=axes, keepdim=True)
        bent_std, bent_mean = bent.std(dim=axes, keepdim=True, correction=0), bent.mean(dim=axes, keepdim=True)
        return bent.sub_(bent_mean).mul_(std / bent_std.clamp(min=1e-7)).add_(mean)
