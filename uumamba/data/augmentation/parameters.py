"""Random parameters of the transforms: drawing, storage and checks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from uumamba.runtime.options import Range
from uumamba.runtime.seeds import generator_for

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


class SpatialTransform(ABC):
    """Transform of image and label."""

    name: str
    """Name of the transform, part of the key of its draws."""

    @abstractmethod
    def draw(self, generator: Generator) -> Values | None:
        """Draw the parameters of one sample; None leaves it unchanged."""

    @abstractmethod
    def apply(self, image: Tensor, label: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Transform a batch into new tensors, or return the given ones unchanged."""

    def draw_for_batch(self, seeds: Sequence[int], *, channels: int) -> Drawn:
        """Draw the parameters of each sample."""
        return draw_for_batch(self.name, seeds, self.draw)


class IntensityTransform(ABC):
    """Transform of intensities only."""

    name: str
    """Name of the transform, part of the key of its draws."""
    probability: float

    @abstractmethod
    def draw(self, generator: Generator, channels: int) -> Values | None:
        """Draw the parameters of one sample; None leaves it unchanged."""

    @abstractmethod
    def apply(self, image: Tensor, values: Values) -> Tensor:
        """Transform samples ``(rows, channels, *spatial)`` into a new tensor."""

    def draw_for_batch(self, seeds: Sequence[int], *, channels: int) -> Drawn:
        """Draw the chosen samples and their parameters."""
        return draw_for_batch(self.name, seeds, partial(self.draw, channels=channels), probability=self.probability)


Transform = SpatialTransform | IntensityTransform


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


def expand_over(values: Tensor, image: Tensor) -> Tensor:
    """Append axes to values so that they broadcast over an image.

    ``(rows,)`` or ``(rows, channels)`` become broadcastable to ``(rows, channels, *spatial)``.
    """
    return values.to(image).reshape(*values.shape, *(1,) * (image.ndim - values.ndim))


def spatial_axes(image: Tensor) -> tuple[int, ...]:
    """Return the axes after batch and channel."""
    return tuple(range(2, image.ndim))
