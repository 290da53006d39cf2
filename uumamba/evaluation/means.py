"""Means over cases and structures: one definition each, and one foreground Dice for the whole project."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from uumamba.evaluation.scores import ScoreRow


@dataclass(frozen=True)
class Moments:
    """Mean, sample standard deviation and number of the finite values; None where they are undefined."""

    mean: float | None
    sd: float | None
    n: int

    @property
    def percent(self) -> "Moments":
        """The same of a hundred times the values."""
        mean, sd = (None if value is None else 100 * value for value in (self.mean, self.sd))
        return Moments(mean, sd, self.n)


@dataclass(frozen=True)
class MeanDice:
    """Mean Dice of each structure over its cases, and the mean of those; None where no case has the structure."""

    foreground: float | None
    structures: Mapping[str, float | None]

    def as_dict(self) -> dict[str, float]:
        """``{"dice": foreground, "RV": ..., ...}``, with NaN for None."""
        named = {"dice": self.foreground, **self.structures}
        return {name: math.nan if mean is None else mean for name, mean in named.items()}


def moments(values: Iterable[float]) -> Moments:
    """Moments of the finite values.

    Example:
        >>> moments([1.0, 3.0, float("inf"), float("nan")])
        Moments(mean=2.0, sd=1.4142135623730951, n=2)
    """
    finite = [value for value in values if math.isfinite(value)]
    return Moments(
        mean=float(np.mean(finite)) if finite else None,
        sd=float(np.std(finite, ddof=1)) if len(finite) > 1 else None,
        n=len(finite),
    )


def mean_dice(scores: Mapping[str, Iterable[float]]) -> MeanDice:
    """The one foreground mean: over structures, of each structure's mean over cases.

    A miss counts as 0. A case in which label and prediction both lack a structure (NaN) is in no mean, nor is a
    structure that no case has. Structures weigh the same, however many cases have them.

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
    """Mean Dice over the structures of each case, to rank cases by; one whose structures are all absent is left out.

    Its mean over cases is another number than :func:`mean_dice` where a structure is absent from some cases.
    """
    values: dict[str, list[float]] = {}
    for row in rows:
        if not math.isnan(row.dice):
            values.setdefault(row.case_id, []).append(row.dice)
    return {case_id: float(np.mean(scores)) for case_id, scores in values.items()}


def mean_dice_of(rows: Iterable[ScoreRow]) -> MeanDice:
    """The same from rows of ``scores.csv``."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row.structure, []).append(row.dice)
    return mean_dice(scores)
