"""Spread of the validation Dice over seeds, folds and all trainings."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from uumamba.evaluation.means import moments

SeedAndFold = tuple[int, str]
"""Seed and fold of one training."""


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviations of a score over trainings.

    The mean of no value and the standard deviation of fewer than two values are None.

    Attributes:
        mean: mean over all trainings.
        sd: standard deviation over all trainings.
        sd_over_seeds: standard deviation of each seed's mean over folds: the effect of another seed.
        sd_over_folds: standard deviation of each fold's mean over seeds: the effect of other patients.
        n: number of trainings with the score.
    """

    mean: float | None
    sd: float | None
    sd_over_seeds: float | None
    sd_over_folds: float | None
    n: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


def spread(values: Mapping[SeedAndFold, float]) -> Spread:
    """Compute the spread of one score.

    Example:
        >>> found = spread({(0, "0"): 0.5, (0, "1"): 0.25, (1, "0"): 0.75, (1, "1"): 0.5})
        >>> found.mean, found.sd_over_seeds == found.sd_over_folds, found.n
        (0.5, True, 4)
    """
    over_all = moments(values.values())
    return Spread(
        over_all.mean, over_all.sd, _compute_sd_of_means(values, 0), _compute_sd_of_means(values, 1), over_all.n
    )


def _compute_sd_of_means(values: Mapping[SeedAndFold, float], position: int) -> float | None:
    """Compute the standard deviation of means by seed or fold.

    ``position`` is that of seed (0) or fold (1) in the key of a training.
    """
    groups: dict[int | str, list[float]] = {}
    for training, value in values.items():
        groups.setdefault(training[position], []).append(value)
    return moments(mean for group in groups.values() if (mean := moments(group).mean) is not None).sd
