"""Table rows of claims: claim, measured values, interval and verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.claims.intervals import Direction, compute_interval, judge_interval

Values = Sequence[float]


@dataclass(frozen=True)
class Claim:
    """Statement of a paper that one number can decide.

    Attributes:
        method: the method that the claim is about.
        control: the method that it is compared with.
        metric: name of the number.
        better: direction in which the number moves if the claim is true.
        margin: allowed difference in the wrong direction: 0 for "better", more for "as good as".
        setting: the data and the network.
        wording: text of the claim; derived from the other attributes if empty.
    """

    method: str
    control: str
    metric: str
    better: Direction
    margin: float = 0.0
    setting: str = "digits"
    wording: str = ""

    def describe(self) -> str:
        """Describe the claim with its direction and margin."""
        if self.wording:
            return self.wording
        if not self.margin:
            return f"{self.better} than {self.control}"
        return f"not {'lower' if self.better == 'higher' else 'higher'} than {self.control} by {self.margin:g} or more"


def make_claim_row(
    claim: Claim, values: Values, control_values: Values, *, budget: str, seeds: int | None = None
) -> dict[str, Any]:
    """Make one row of the table.

    Args:
        claim: the claim.
        values: the method's numbers, one per seed (or patient, or round of timing).
        control_values: the control's numbers for the same seeds.
        budget: the resource of which method and control got the same amount.
        seeds: number of seeds, if a pair is not a seed.
    """
    differences = [own - other for own, other in zip(values, control_values, strict=True)]
    interval = compute_interval(differences)
    return {
        "method": claim.method,
        "claim": claim.describe(),
        "metric": f"{claim.setting}: {claim.metric}" if claim.setting else claim.metric,
        "budget": budget,
        "value": round_digits(fmean(values)),
        "control": claim.control,
        "control_value": round_digits(fmean(control_values)),
        "difference": round_digits(fmean(differences)),
        "interval": [round_digits(end) for end in interval],
        "seeds": len(values) if seeds is None else seeds,
        "verdict": judge_interval(interval, claim.better, margin=claim.margin),
    }


def round_digits(value: float) -> float:
    """Round to five significant digits, more than any table shows."""
    return float(f"{value:.5g}")


def find_best_value(found: Mapping[float, float], better: str) -> float:
    """Return the candidate with the best mean measure, the first of equals.

    Example:
        >>> find_best_value({0.05: 0.9, 0.1: 0.95, 0.2: 0.95}, "higher")
        0.1
    """
    sign = 1 if better == "higher" else -1
    return max(found, key=lambda value: sign * found[value])
