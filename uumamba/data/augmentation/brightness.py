"""Multiplicative brightness."""

from torch import Generator, Tensor

from uumamba.data.augmentation.parameters import Range, Values, check_probability, check_range, factor, per_sample


class Brightness:
    """Multiply each channel by a drawn factor.

    Args:
        probability: of a sample being changed.
        multiplier: range of the factor; below 1 as often as above.

    Raises:
        UsageError: the probability or the range is invalid.
    """

    name = "brightness"

    def __init__(self, *, probability: float = 0.15, multiplier: Range = (0.75, 1.25)) -> None:
        self.probability = check_probability("brightness_probability", probability)
        self.multiplier = check_range("brightness", multiplier, least=0.0)

    def draw(self, generator: Generator, channels: int) -> Values | None:
        """Draw ``multiplier`` ``(channels,)``."""
        return {"multiplier": factor(generator, self.multiplier, channels)}

    def apply(self, image: Tensor, values: Values) -> Tensor:
        """Multiply each channel."""
        return image * per_sample(values["multiplier"], image)
