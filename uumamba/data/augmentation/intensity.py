"""Intensity transforms: brightness, contrast, gamma, noise and bias field."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from uumamba.data.augmentation.parameters import (
    IntensityTransform,
    Values,
    draw_factor,
    draw_uniform,
    expand_over,
    spatial_axes,
)
from uumamba.runtime.options import NonNegativeRange, PositiveInt, PositiveRange, Probability, check_options

DEGREE = 3  # total degree of the bias field's polynomial


@check_options
@dataclass(kw_only=True, eq=False)
class Brightness(IntensityTransform):
    """Multiplication of each channel by a drawn factor.

    ``draw`` returns ``multiplier`` ``(channels,)``.

    Args:
        probability: probability that a sample is changed.
        multiplier: range of the factor; values below and above 1 are equally likely.

    Raises:
        UsageError: the probability or the range is invalid.
    """

    name = "brightness"
    probability: Probability
    multiplier: NonNegativeRange

    def draw(self, generator: Generator, channels: int) -> Values | None:
        return {"multiplier": draw_factor(generator, self.multiplier, channels)}

    def apply(self, image: Tensor, values: Values) -> Tensor:
        return image * expand_over(values["multiplier"], image)


@check_options
@dataclass(kw_only=True, eq=False)
class Contrast(IntensityTransform):
    r"""Stretching of each channel about its mean, clipped to its old range.

    The result is :math:`m + f (x - m)` with the mean :math:`m`. ``draw`` returns ``multiplier`` ``(channels,)``.

    Args:
        probability: probability that a sample is changed.
        multiplier: range of the factor :math:`f`; values below and above 1 are equally likely.

    Raises:
        UsageError: the probability or the range is invalid.
    """

    name = "contrast"
    probability: Probability
    multiplier: NonNegativeRange

    def draw(self, generator: Generator, channels: int) -> Values | None:
        return {"multiplier": draw_factor(generator, self.multiplier, channels)}

    def apply(self, image: Tensor, values: Values) -> Tensor:
        axes = spatial_axes(image)
        mean = image.mean(dim=axes, keepdim=True)
        stretched = torch.lerp(mean.expand_as(image), image, expand_over(values["multiplier"], image))
        return stretched.clamp_(image.amin(dim=axes, keepdim=True), image.amax(dim=axes, keepdim=True))


@check_options
@dataclass(kw_only=True, eq=False)
class Gamma(IntensityTransform):
    r"""Gamma transform of each channel with a drawn exponent.

    The channel is normalised to 0 to 1 first, :math:`u = (x - \min x) / (\max x - \min x)`. The result is
    :math:`u^\gamma`; inverted, it is :math:`1 - (1 - u)^\gamma`, which changes bright instead of dark values most. Mean
    and standard deviation of the channel are then restored. A constant channel is unchanged. ``draw`` returns ``gamma``
    ``(channels,)``.

    Args:
        probability: probability that a sample is changed.
        gamma: range of the exponent; values below and above 1 are equally likely.
        inverted: transform the inverted image.

    Raises:
        UsageError: the probability or the range is invalid.
    """

    probability: Probability
    gamma: PositiveRange
    inverted: bool = False

    def __post_init__(self) -> None:
        self.name = "inverted_gamma" if self.inverted else "gamma"

    def draw(self, generator: Generator, channels: int) -> Values | None:
        return {"gamma": draw_factor(generator, self.gamma, channels)}

    def apply(self, image: Tensor, values: Values) -> Tensor:
        axes = spatial_axes(image)
        lowest, highest = image.amin(dim=axes, keepdim=True), image.amax(dim=axes, keepdim=True)
        origin = highest if self.inverted else lowest
        # Division by the signed extent maps both variants to 0 to 1; the multiplication at the end restores the sign.
        extent = (highest - lowest).clamp(min=1e-7) * (-1.0 if self.inverted else 1.0)
        curved = ((image - origin) / extent).clamp_(0.0, 1.0).pow_(expand_over(values["gamma"], image)).mul_(extent)
        std, mean = image.std(dim=axes, keepdim=True, correction=0), image.mean(dim=axes, keepdim=True)
        curved_std, curved_mean = curved.std(dim=axes, keepdim=True, correction=0), curved.mean(dim=axes, keepdim=True)
        return curved.sub_(curved_mean).mul_(std / curved_std.clamp(min=1e-7)).add_(mean)


@check_options
@dataclass(kw_only=True, eq=False)
class Noise(IntensityTransform):
    """Gaussian noise with a drawn standard deviation.

    The noise is independent for every voxel, and the same for all channels of an image, as in nnU-Net; neighbouring
    slices have their own noise. It is drawn on the CPU from a drawn seed, so it is the same on every device. ``draw``
    returns ``std`` and ``seed``.

    Args:
        probability: probability that a sample is changed.
        std: range of the standard deviation, in units of the normalised image.
        channels: number of channels of an image; the batch's first axis of channels is a multiple of it.

    Raises:
        UsageError: the probability or the range is invalid.
    """

    name = "noise"
    probability: Probability
    std: NonNegativeRange
    channels: PositiveInt = 1

    def draw(self, generator: Generator, channels: int) -> Values | None:
        return {"std": draw_uniform(generator, self.std), "seed": torch.randint(2**62, (), generator=generator)}

    def apply(self, image: Tensor, values: Values) -> Tensor:
        noisy = image.clone()
        for sample, std, seed in zip(noisy, values["std"].tolist(), values["seed"].tolist(), strict=True):
            shape = (len(sample) // self.channels, *sample.shape[1:])
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(sample)
            sample.unflatten(0, (self.channels, -1)).add_(noise, alpha=std)
        return noisy


@check_options
@dataclass(kw_only=True, eq=False)
class BiasField(IntensityTransform):
    r"""Multiplication of the image by a smooth random field.

    The field is :math:`\exp(a\,q / \max|q|)`, where :math:`q` is a random polynomial of the position with total degree
    3, no constant, and normally distributed coefficients. The drawn strength :math:`a` limits the factor of intensities
    to :math:`e^{\pm a}`. All channels have the same field. A normalised image has no physical zero, so the field is
    applied to :math:`x - \min x` of each channel.

    Args:
        probability: probability that a sample is changed.
        strength: range of :math:`a`.
        dimensions: spatial dimensions of the patch.

    Raises:
        UsageError: the probability or the range is invalid.

    References:
        Sudre, Cardoso & Ourselin, *Longitudinal segmentation of age-related white matter hyperintensities*, 2017.
        Differs from the paper: the field's largest value is drawn instead of following from the coefficients.
    """

    name = "bias_field"
    probability: Probability
    strength: NonNegativeRange
    dimensions: PositiveInt

    def draw(self, generator: Generator, channels: int) -> Values | None:
        """Draw ``strength`` and the ``coefficients`` of ``z^i y^j x^k``.

        Coefficients beyond the total degree are 0.
        """
        coefficients = torch.randn((DEGREE + 1,) * self.dimensions, generator=generator)
        total_degree = sum(
            torch.meshgrid(*[torch.arange(DEGREE + 1)] * self.dimensions, indexing="ij"), torch.tensor(0)
        )
        return {
            "strength": draw_uniform(generator, self.strength),
            "coefficients": coefficients * ((total_degree >= 1) & (total_degree <= DEGREE)),
        }

    def apply(self, image: Tensor, values: Values) -> Tensor:
        exponent = values["coefficients"].to(image)
        for length in image.shape[2:]:
            # Each contraction replaces the first axis of powers by a spatial axis.
            exponent = torch.tensordot(exponent, _powers(length, image), dims=([1], [0]))
        largest = exponent.abs().amax(dim=tuple(range(1, exponent.ndim)), keepdim=True).clamp(min=1e-7)
        field = torch.exp(exponent / largest * expand_over(values["strength"], exponent))[:, None]
        lowest = image.amin(dim=spatial_axes(image), keepdim=True)
        return (image - lowest) * field + lowest


def _powers(length: int, like: Tensor) -> Tensor:
    """Compute powers of positions from -1 to 1, ``(DEGREE + 1, length)``."""
    position = torch.linspace(-1.0, 1.0, length).to(like)
    return torch.stack([position**power for power in range(DEGREE + 1)])
