"""A smooth multiplicative field, as receiver coils leave on magnetic resonance images."""

import torch
from torch import Generator, Tensor

from uumamba.data.augmentation.parameters import (
    Range,
    Values,
    check_probability,
    check_range,
    per_sample,
    spatial_axes,
    uniform,
)

DEGREE = 3


class BiasField:
    r"""Multiply the image by :math:`\exp(a\,q / \max|q|)`, where :math:`q` is a random polynomial of the position.

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
        wanted = (total_degree >= 1) & (total_degree <= DEGREE)
        return {"strength": uniform(generator, self.strength), "coefficients": coefficients * wanted}

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
    """Powers of the position, which runs from -1 to 1, ``(DEGREE + 1, length)``."""
    position = torch.linspace(-1.0, 1.0, length).to(like)
    return torch.stack([position**power for power in range(DEGREE + 1)])
