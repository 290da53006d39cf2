"""Random parameters of the transforms: how they are drawn, kept and checked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from uumamba.runtime.errors import require
from uumamba.runtime.seeds import generator_for

Range = tuple[float, float]
Values = dict[str, Tensor]
"""The parameters of one transform: of one sample when drawn, stacked over samples when applied."""


@dataclass(frozen=True)
class Drawn:
    """Parameters of one transform for a batch.

    Args:
        rows: the samples that it changes, in ascending order.
        values: their parameters; the first axis of each tensor runs over ``rows``.
    """

    rows: tuple[int, ...]
    values: Values

    def __bool__(self) -> bool:
        return bool(self.rows)


class IntensityTransform(Protocol):
    """A transform that changes intensities and leaves the label alone."""

    probability: float

    @property
    def name(self) -> str:
        """Part of the key of its draws, hence part of the numbers."""

    def draw(self, generator: Generator, channels: int) -> Values | None:
        """Draw the parameters of one sample that it changes; None leaves the sample alone after all."""

    def apply(self, image: Tensor, values: Values) -> Tensor:
        """Change samples ``(rows, channels, *spatial)`` as drawn.

        The given tensor is not written to.
        """


def draw_for_batch(
    name: str, seeds: Sequence[int], draw: Callable[[Generator], Values | None], *, probability: float | None = None
) -> Drawn:
    """Draw one transform's parameters for each sample of a batch.

    Each draw comes from a generator keyed by the sample's seed and the name. A sample's draws therefore depend neither
    on the other samples nor on the other transforms, and are the same whichever device the batch is on.

    Args:
        name: the transform's.
        seeds: one a sample.
        draw: parameters of a sample, or None to leave it alone.
        probability: of asking ``draw`` at all; None always asks, without a random number.
    """
    hits = []
    for row, seed in enumerate(seeds):
        generator = generator_for(seed, name)
        fired = probability is None or fires(generator, probability)
        if fired and (values := draw(generator)) is not None:
            hits.append((row, values))
    stacked = {key: torch.stack([values[key] for _, values in hits]) for key in (hits[0][1] if hits else ())}
    return Drawn(rows=tuple(row for row, _ in hits), values=stacked)


def fires(generator: Generator, probability: float) -> bool:
    """Draw an event of this probability; never at 0, always at 1."""
    return float(torch.rand((), generator=generator)) < probability


def uniform(generator: Generator, limits: Range, *size: int) -> Tensor:
    """Draw uniformly from ``[low, high)``."""
    low, high = limits
    return low + (high - low) * torch.rand(size, generator=generator)


def factor(generator: Generator, limits: Range, *size: int) -> Tensor:
    """Draw multipliers from a range around 1.

    They are below 1 as often as above, and uniform on either side. A uniform draw from a lopsided range, such as
    ``(0.7, 1.5)``, would on average make every image darker. A range on one side of 1 is drawn from uniformly.
    """
    low, high = limits
    if not low < 1.0 < high:
        return uniform(generator, limits, *size)
    below = torch.rand(size, generator=generator) < 0.5
    position = torch.rand(size, generator=generator)
    return torch.where(below, low + (1.0 - low) * position, 1.0 + (high - 1.0) * position)


def check_probability(name: str, probability: float) -> float:
    """Return the probability.

    Raises:
        UsageError: it is not within 0 and 1.
    """
    require(0.0 <= probability <= 1.0, name, got=probability, expected="a number from 0 to 1")
    return float(probability)


def check_range(name: str, limits: Sequence[float], *, above: float = -torch.inf, least: float = -torch.inf) -> Range:
    """Return the range as two floats.

    Raises:
        UsageError: it is not ``(low, high)`` with ``low <= high``, or ``low`` breaks ``above`` or ``least``.
    """
    is_range = len(limits) == 2 and limits[0] <= limits[1] and limits[0] > above and limits[0] >= least
    bound = f", above {above:g}" if above > -torch.inf else f", at least {least:g}" if least > -torch.inf else ""
    require(is_range, name, got=tuple(limits), expected=f"(low, high) with low <= high{bound}")
    return float(limits[0]), float(limits[1])


def per_sample(values: Tensor, image: Tensor) -> Tensor:
    """Reshape ``(rows,)`` or ``(rows, channels)`` so that it broadcasts over ``(rows, channels, *spatial)``."""
    return values.to(image).reshape(*values.shape, *(1,) * (image.ndim - values.ndim))


def spatial_axes(image: Tensor) -> tuple[int, ...]:
    """Axes after batch and channel."""
    return tuple(range(2, image.ndim))
