"""Changes of intensity: brightness, contrast, gamma, noise and a bias field."""

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
    uniform,
)

DEGREE = 3
"""Total degree of the bias field's polynomial."""


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


class Contrast:
    r"""Stretch each channel about its mean, clipped to its old range.

    :math:`m + f (x - m)` with the mean :math:`m`.

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


class Gamma:
    r"""Raise each channel to a drawn power.

    The channel is scaled to 0 to 1 before, and gets back its mean and standard deviation.

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


class Noise:
    """Add Gaussian noise of a drawn standard deviation.

    It is independent for every voxel and channel. The noise itself is drawn on the CPU from a seed that belongs to the
    parameters, so it is the same on every device.

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


class BiasField:
    r"""Multiply the image by a smooth random field.

    The field is :math:`\exp(a\,q / \max|q|)`, where :math:`q` is a random polynomial of the position.

    :math:`q` has total degree 3, no constant, and normally distributed coefficients; :math:`a` is the drawn strength,
    so intensities change by at most the factor :math:`e^{\pm a}`. One field serves all channels. Since a normalised
    image has no physical zero, the field acts on :math:`x - \min x` of each channel.

    Args:
        probability: of a sample being changed.
        strength: range of :math:`a`.
        dimensions: spatial dimensions of the patch.

    Raises:
        UsageError: the probability or the range is invalid.

    References:
        Sudre, Cardoso & Ourselin, *Longitudinal segmentation of age-related white matter hyperintensities*, 2017.
        Differs from the paper: the field's largest value is drawn instead of following from the coefficients.
    """

    name = "bias_field"

    def __init__(self, *, probability: float = 0.0, strength: Range = (0.1, 0.5), dimensions: int = 2) -> None:
        self.probability = check_probability("bias_field_probability", probability)
        self.strength = check_range("bias_field_strength", strength, least=0.0)
        self.dimensions = dimensions

    def draw(self, generator: Generator, channels: int) -> Values | None:
        """Draw ``strength`` and the ``coefficients`` of ``z^i y^j x^k`` (0 beyond the total degree)."""
        coefficients = torch.randn((DEGREE + 1,) * self.dimensions, generator=generator)
        total_degree = sum(
            torch.meshgrid(*[torch.arange(DEGREE + 1)] * self.dimensions, indexing="ij"), torch.tensor(0)
        )
        return {
            "strength": uniform(generator, self.strength),
            "coefficients": coefficients * ((total_degree >= 1) & (total_degree <= DEGREE)),
        }

    def apply(self, image: Tensor, values: Values) -> Tensor:
        """Multiply by the field."""
        exponent = values["coefficients"].to(image)
        for length in image.shape[2:]:
            # Contract the powers axis by axis: each step turns the first remaining power axis into a spatial one.
            exponent = torch.tensordot(exponent, _powers(length, image), dims=([1], [0]))
        largest = exponent.abs().amax(dim=tuple(range(1, exponent.ndim)), keepdim=True).clamp(min=1e-7)
        field = torch.exp(exponent / largest * per_sample(values["strength"], exponent))[:, None]
        lowest = image.amin(dim=spatial_axes(image), keepdim=True)
        return (image - lowest) * field + lowest


def _powers(length: int, like: Tensor) -> Tensor:
    """Powers of the position, ``(DEGREE + 1, length)``.

    The position runs from -1 to 1.
    """
    position = torch.linspace(-1.0, 1.0, length).to(like)
    return torch.stack([position**power for power in range(DEGREE + 1)])
