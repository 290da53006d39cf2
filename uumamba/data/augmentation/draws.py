"""What every transform shares: how chance is asked, and the form in which the answers are kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from uumamba.runtime.seeds import generator_for

Range = tuple[float, float]
Values = dict[str, Tensor]
"""The parameters of one transform: of one sample when drawn, stacked over samples when applied."""


@dataclass(frozen=True)
class Drawn:
    """What one transform will do to a batch.

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

    @property
    def name(self) -> str:
        """Part of the key of its draws, hence never to be renamed lightly."""

    def draw(self, generator: Generator, channels: int) -> Values | None:
        """The parameters of one sample, or None where it is left alone."""

    def apply(self, image: Tensor, values: Values) -> Tensor:
        """Change samples ``(rows, channels, *spatial)`` as drawn; the given tensor is not written to."""


def draw_for_batch(name: str, seeds: Sequence[int], draw: Callable[[Generator], Values | None]) -> Drawn:
    """Draw one transform's parameters for each sample from a generator keyed by the sample's seed and the name.

    A sample's draws therefore depend neither on the other samples nor on the other transforms, and are the same
    whichever device the batch is on.
    """
    hits = [(row, values) for row, seed in enumerate(seeds) if (values := draw(generator_for(seed, name))) is not None]
    names = hits[0][1] if hits else {}
    stacked = {key: torch.stack([values[key] for _, values in hits]) for key in names}
    return Drawn(rows=tuple(row for row, _ in hits), values=stacked)


def fires(generator: Generator, probability: float) -> bool:
    """Whether an event of this probability happens; never at 0, always at 1."""
    return float(torch.rand((), generator=generator)) < probability


def uniform(generator: Generator, limits: Range, *size: int) -> Tensor:
    """Uniform draws from ``[low, high)``."""
    low, high = limits
    return low + (high - low) * torch.rand(size, generator=generator)


def factor(generator: Generator, limits: Range, *size: int) -> Tensor:
    """Multipliers from a range around 1: below 1 as often as above, uniform on either side.

    Without it, a lopsided range such as ``(0.7, 1.5)`` would on average make every image darker.
    A range that lies on one side of 1 is drawn from uniformly.
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
        ValueError: it is not within 0 and 1.
    """
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"{name} must lie within 0 and 1, got {probability}.")
    return float(probability)


def check_range(name: str, limits: Sequence[float], *, above: float | None = None, least: float | None = None) -> Range:
    """Return the range as two floats.

    Raises:
        ValueError: it is not ``(low, high)`` with ``low <= high``, or ``low`` breaks ``above`` or ``least``.
    """
    if len(limits) != 2 or not limits[0] <= limits[1]:
        raise ValueError(f"{name} must be (low, high) with low <= high, got {tuple(limits)}.")
    if above is not None and not limits[0] > above:
        raise ValueError(f"{name} must lie above {above}, got {tuple(limits)}.")
    if least is not None and not limits[0] >= least:
        raise ValueError(f"{name} must not fall below {least}, got {tuple(limits)}.")
    return float(limits[0]), float(limits[1])


def per_sample(values: Tensor, image: Tensor) -> Tensor:
    """Reshape ``(rows,)`` or ``(rows, channels)`` so that it broadcasts over ``(rows, channels, *spatial)``."""
    return values.reshape(*values.shape, *(1,) * (image.ndim - values.ndim))


def spatial_axes(image: Tensor) -> tuple[int, ...]:
    """The axes after batch and channel."""
    return tuple(range(2, image.ndim))
