"""Random parameters of the transforms: drawing, storage and checks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from uumamba.runtime.errors import require
from uumamba.runtime.seeds import generator_for

Range = tuple[float, float]
Values = dict[str, Tensor]  # parameters of one transform, for one sample or stacked over samples


@dataclass(frozen=True)
class Drawn:
    """Parameters of one transform for a batch.

    Args:
        rows: changed samples, in ascending order.
        values: parameters; the first axis of each tensor runs over ``rows``.
    """

    rows: tuple[int, ...]
    values: Values


class IntensityTransform(Protocol):
    """Transform of intensities only."""

    probability: float

    @property
    def name(self) -> str:
        """Name of the transform, part of the key of its draws."""

    def draw(self, generator: Generator, channels: int) -> Values | None:
        """Draw the parameters of one sample; None leaves it unchanged."""

    def apply(self, image: Tensor, values: Values) -> Tensor:
        """Transform samples ``(rows, channels, *spatial)`` into a new tensor."""


def draw_for_batch(
    name: str, seeds: Sequence[int], draw: Callable[[Generator], Values | None], *, probability: float | None = None
) -> Drawn:
    """Draw one transform's parameters for each sample of a batch.

    Each draw comes from a generator keyed by the sample's seed and the name. The draws of a sample therefore depend
    neither on other samples nor on other transforms, and are the same on every device.

    Args:
        name: name of the transform.
        seeds: one seed per sample.
        draw: draws the parameters of a sample, or None to leave the sample unchanged.
        probability: probability of a call of ``draw``; None calls it always, without a random number.
    """
    hits = []
    for row, seed in enumerate(seeds):
        generator = generator_for(seed, name)
        is_chosen = probability is None or draw_event(generator, probability)
        if is_chosen and (values := draw(generator)) is not None:
            hits.append((row, values))
    stacked = {key: torch.stack([values[key] for _, values in hits]) for key in (hits[0][1] if hits else ())}
    return Drawn(rows=tuple(row for row, _ in hits), values=stacked)


def draw_event(generator: Generator, probability: float) -> bool:
    """Return True with the given probability."""
    return float(torch.rand((), generator=generator)) < probability


def draw_uniform(generator: Generator, limits: Range, *size: int) -> Tensor:
    """Draw uniformly from ``[low, high)``."""
    low, high = limits
    return low + (high - low) * torch.rand(size, generator=generator)


def draw_factor(generator: Generator, limits: Range, *size: int) -> Tensor:
    """Draw multipliers from a range around 1.

    Values below and above 1 are equally likely, and uniform on either side. A uniform draw from an asymmetric range,
    such as ``(0.7, 1.5)``, would on average make images darker. A range on one side of 1 is drawn from uniformly.
    """
    low, high = limits
    if not low < 1.0 < high:
        return draw_uniform(generator, limits, *size)
    below = torch.rand(size, generator=generator) < 0.5
    position = torch.rand(size, generator=generator)
    return torch.where(below, low + (1.0 - low) * position, 1.0 + (high - 1.0) * position)


def check_probability(name: str, probability: float) -> float:
    """Return a probability after a check.

    Raises:
        UsageError: the number is not from 0 to 1.
    """
    require(0.0 <= probability <= 1.0, name, got=probability, expected="a number from 0 to 1")
    return float(probability)


def check_range(name: str, limits: Sequence[float], *, above: float = -torch.inf, least: float = -torch.inf) -> Range:
    """Return a range as two floats after a check.

    Raises:
        UsageError: the range is not ``(low, high)`` with ``low <= high``, or ``low`` is below a bound.
    """
    is_range = len(limits) == 2 and limits[0] <= limits[1] and limits[0] > above and limits[0] >= least
    bound = f", above {above:g}" if above > -torch.inf else f", at least {least:g}" if least > -torch.inf else ""
    require(is_range, name, got=tuple(limits), expected=f"(low, high) with low <= high{bound}")
    return float(limits[0]), float(limits[1])


def expand_over(values: Tensor, image: Tensor) -> Tensor:
    """Append axes to values so that they broadcast over an image.

    ``(rows,)`` or ``(rows, channels)`` become broadcastable to ``(rows, channels, *spatial)``.
    """
    return values.to(image).reshape(*values.shape, *(1,) * (image.ndim - values.ndim))


def spatial_axes(image: Tensor) -> tuple[int, ...]:
    """Return the axes after batch and channel."""
    return tuple(range(2, image.ndim))
