"""Means over cases and structures, and the foreground Dice."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from uumamba.evaluation.scores import ScoreRow


@dataclass(frozen=True)
class Moments:
    """Mean, sample standard deviation and number of finite values; None if undefined."""

    mean: float | None
    sd: float | None
    n: int

    @property
    def percent(self) -> "Moments":
        """Moments of the values times 100."""
        mean, sd = (None if value is None else 100 * value for value in (self.mean, self.sd))
        return Moments(mean, sd, self.n)


@dataclass(frozen=True)
class MeanDice:
    """Mean Dice of the foreground and of each structure.

    A mean is None if no case has the structure.
    """

    foreground: float | None
    structures: Mapping[str, float | None]

    def as_dict(self) -> dict[str, float]:
        """Return ``{"dice": foreground, "RV": ..., ...}``; NaN replaces None."""
        named = {"dice": self.foreground, **self.structures}
        return {name: math.nan if mean is None else mean for name, mean in named.items()}


def moments(values: Iterable[float]) -> Moments:
    """Compute the moments of the finite values.

    Example:
        >>> moments([1.0, 3.0, float("inf"), float("nan")])
        Moments(mean=2.0, sd=1.4142135623730951, n=2)
    """
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) == 1:  # most patients and many cases; numpy's mean would take most of the time of a report
        return Moments(float(finite[0]), None, 1)
    return Moments(
        mean=float(np.mean(finite)) if finite else None,
        sd=float(np.std(finite, ddof=1)) if len(finite) > 1 else None,
        n=len(finite),
    )


def mean_dice(scores: Mapping[str, Iterable[float]]) -> MeanDice:
    """Compute the mean Dice of the foreground and of each structure.

    The mean of a structure is over cases, that of the foreground over the means of the structures. A miss counts as 0.
    A case with the structure neither in label nor in prediction (NaN) is in no mean, and a structure that no case has
    is not in the foreground mean. All structures have the same weight, whatever their number of cases.

    Args:
        scores: Dice of each case, by structure.

    Example:
        >>> mean_dice({"RV": [0.0, 0.5, float("nan")], "LV": [0.75], "LA": []})
        MeanDice(foreground=0.5, structures={'RV': 0.25, 'LV': 0.75, 'LA': None})
    """
    means = {structure: moments(values).mean for structure, values in scores.items()}
    known = [mean for mean in means.values() if mean is not None]
    return MeanDice(float(np.mean(known)) if known else None, means)


def case_dice(rows: Iterable[ScoreRow]) -> dict[str, float]:
    """Compute the mean Dice of each case over its structures.

    Cases without any structure are left out. The mean over cases differs from :func:`mean_dice` if some cases lack a
    structure.
    """
    means = {case_id: moments(scores).mean for case_id, scores in _group_dice("case_id", rows).items()}
    return {case_id: mean for case_id, mean in means.items() if mean is not None}


def mean_dice_of(rows: Iterable[ScoreRow]) -> MeanDice:
    """Compute :func:`mean_dice` from rows of ``scores.csv``."""
    return mean_dice(_group_dice("structure", rows))


def _group_dice(field: str, rows: Iterable[ScoreRow]) -> dict[str, list[float]]:
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(getattr(row, field), []).append(row.dice)
    return scores
