"""How much validation Dice differs between trainings: over seeds, over folds, and over both."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from uumamba.evaluation.means import moments

Training = tuple[int, str]
"""Seed and fold."""


@dataclass(frozen=True)
class Spread:
    """One score over trainings; standard deviations are those of a sample, None of fewer than two.

    Attributes:
        mean: over all trainings.
        sd: over all trainings.
        sd_over_seeds: of each seed's mean over its folds: what another seed would change.
        sd_over_folds: of each fold's mean over its seeds: what other patients would change.
        n: trainings that have the score.
    """

    mean: float | None
    sd: float | None
    sd_over_seeds: float | None
    sd_over_folds: float | None
    n: int

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def spread(values: Mapping[Training, float]) -> Spread:
    """The spread of one score.

    Example:
        >>> found = spread({(0, "0"): 0.5, (0, "1"): 0.25, (1, "0"): 0.75, (1, "1"): 0.5})
        >>> found.mean, found.sd_over_seeds == found.sd_over_folds, found.n
        (0.5, True, 4)
    """
    over_all = moments(values.values())
    return Spread(
        over_all.mean,
        over_all.sd,
        _sd_of_means(values, lambda training: training[0]),
        _sd_of_means(values, lambda training: training[1]),
        over_all.n,
    )


def _sd_of_means(values: Mapping[Training, float], group_of: Callable[[Training], int | str]) -> float | None:
    groups: dict[int | str, list[float]] = {}
    for training, value in values.items():
        groups.setdefault(group_of(training), []).append(value)
    means = (moments(group).mean for group in groups.values())
    return moments(mean for mean in means if mean is not None).sd
