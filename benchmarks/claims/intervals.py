"""Intervals of paired differences, and the verdict of an interval."""

import math
from collections.abc import Sequence
from typing import Literal

from scipy.stats import t as student

from uumamba.runtime.errors import require

Direction = Literal["higher", "lower"]
HOLDS, FAILS, UNDECIDED = "holds", "does not hold here", "not distinguishable"


def compute_interval(differences: Sequence[float], *, level: float = 0.95) -> tuple[float, float]:
    r"""Compute Student's interval of the mean of paired differences.

    The interval is :math:`\bar d \pm t_{n-1}\, s / \sqrt n`.

    Args:
        differences: value minus control, one per pair: a seed, a patient, or a round of timing.
        level: probability that the interval contains the true mean, for normal differences.

    Raises:
        UsageError: there are fewer than two pairs.

    Example:
        >>> low, high = compute_interval([1.0, 3.0])  # mean 2, s = sqrt(2), t = 12.706
        >>> round(low, 2), round(high, 2)
        (-10.71, 14.71)
    """
    count = len(differences)
    require(count >= 2, "differences", got=count, expected="two pairs or more", fix="run more seeds")
    mean = math.fsum(differences) / count
    variance = math.fsum((each - mean) ** 2 for each in differences) / (count - 1)
    half = float(student.ppf((1 + level) / 2, count - 1)) * math.sqrt(variance / count)
    return mean - half, mean + half


def judge_interval(interval: tuple[float, float], better: Direction, *, margin: float = 0.0) -> str:
    """Return the verdict on a claim from the interval of its difference.

    Args:
        interval: of value minus control.
        better: the claimed direction.
        margin: allowed difference in the wrong direction: 0 for "better than", more for "as good as".

    Example:
        >>> judge_interval((0.1, 0.3), "higher"), judge_interval((0.1, 0.3), "lower")
        ('holds', 'does not hold here')
        >>> judge_interval((-0.1, 0.3), "higher", margin=0.2)
        'holds'
    """
    low, high = interval if better == "higher" else (-interval[1], -interval[0])
    if low > -margin:
        return HOLDS
    return FAILS if high < -margin else UNDECIDED
