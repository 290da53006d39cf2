from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from uumamba.optim import AdaptiveTrigger, Rule, SharpnessAware, FirstPass
from uumamba.optim.sam import follow_gradient


def slope(*entries: float, numbers: dict[str, float]) -> FirstPass:
    return FirstPass([], [torch.tensor(entries, dtype=torch.float64)], numbers=numbers)


def test_the_first_three_steps_by_hand() -> None:
    # squared norms 25, 1, 1; decay 0.5 and a threshold of mu + s at first, mu - s at the end
    trigger, numbers = AdaptiveTrigger(total_steps=2, decay=0.5), {}
    assert trigger(slope(3.0, 4.0, numbers=numbers))  # mu 12.5, s^2 0.5 * 12.5^2: 25 >= 12.5 + 8.84
    assert not trigger(slope(1.0, numbers=numbers))  # c 0, mu 6.75
    variance = (78.125 / 2 + 5.75**2 / 2) / 2 + 2.875**2 / 2
    assert trigger(slope(1.0, numbers=numbers))  # c -1, mu 3.875: 1 >= 3.875 - 5.65
    assert numbers == {"trigger_steps": 3, "trigger_mean": 3.875, "trigger_variance": pytest.approx(variance)}


def test_a_gradient_that_is_not_finite_neither_climbs_nor_counts() -> None:
    trigger, numbers = AdaptiveTrigger(total_steps=2), {}
    for value in ("inf", "nan", "1e100"):  # the last one's variance is beyond float64
        assert not trigger(slope(1.0, float(value), numbers=numbers))
    assert numbers == {}


@pytest.mark.parametrize("start", [1.0, -1.0])
def test_the_threshold_stays_where_it_ends(start: float) -> None:
    # norms that alternate between 1 and 2: at the mean every other one climbs, further along the line all or none would
    trigger, numbers = AdaptiveTrigger(total_steps=5, start=start, end=0.0), {}
    verdicts = [trigger(slope(1.0 + step % 2, numbers=numbers)) for step in range(60)]
    assert verdicts[20:] == [False, True] * 20


def test_sam_under_a_trigger_equals_the_formula(equals_formula: Any) -> None:
    verdicts = []

    def formula(weights: Tensor, gradients: Any) -> Tensor:
        mean, variance = 0.0, 0.0
        for step, gradient in enumerate(gradients):
            g = gradient(weights)
            squared = float(g @ g)
            mean = 0.9 * mean + 0.1 * squared
            variance = 0.9 * variance + 0.1 * (squared - mean) ** 2
            verdicts.append(squared >= mean + (1 - 2 * step / 20) * variance**0.5)
            weights = weights - 0.1 * (gradient(weights + 0.3 * g / g.norm()) if verdicts[-1] else g)
        return weights

    rule = Rule(direction=follow_gradient, is_due=AdaptiveTrigger(total_steps=20), is_shared=True)
    make = partial(SharpnessAware, rule=rule, group_defaults={"rho": 0.3})
    equals_formula(formula, make, partial(SGD, lr=0.1))
    assert 3 < sum(verdicts) < 20
