"""Chance: probabilities, ranges and keys."""

import pytest
import torch

from uumamba.data.augmentation.parameters import check_range, draw_for_batch, factor, fires, uniform
from uumamba.runtime.seeds import generator_for


def test_probability_zero_never_fires_and_one_always_does() -> None:
    generator = generator_for("test")
    assert not any(fires(generator, 0.0) for _ in range(2000))
    assert all(fires(generator, 1.0) for _ in range(2000))


def test_a_factor_lies_below_one_as_often_as_above() -> None:
    drawn = factor(generator_for("test"), (0.7, 1.5), 2000)
    assert drawn.min() >= 0.7
    assert drawn.max() <= 1.5
    assert abs((drawn < 1).float().mean() - 0.5) < 4 * (0.25 / 2000) ** 0.5
    # Uniform on either side: the means are the middles, with error width / sqrt(12 n), n about 1000.
    assert abs(drawn[drawn < 1].mean() - 0.85) < 4 * 0.3 / (12 * 900) ** 0.5
    assert abs(drawn[drawn >= 1].mean() - 1.25) < 4 * 0.5 / (12 * 900) ** 0.5


def test_a_factor_whose_range_lies_on_one_side_of_one_is_uniform() -> None:
    drawn = factor(generator_for("test"), (1.0, 2.0), 1000)
    assert abs(drawn.mean() - 1.5) < 4 / (12 * 1000) ** 0.5


def test_a_sample_draws_the_same_beside_any_other_samples() -> None:
    def draw(generator: torch.Generator) -> dict[str, torch.Tensor] | None:
        return {"x": uniform(generator, (0.0, 1.0))} if fires(generator, 0.5) else None

    together = draw_for_batch("name", [5, 6, 7, 8, 9], draw)
    alone = {seed: draw_for_batch("name", [seed], draw) for seed in [5, 6, 7, 8, 9]}
    assert together.rows == tuple(row for row, seed in enumerate(alone) if alone[seed])
    assert torch.equal(together.values["x"], torch.cat([drawn.values["x"] for drawn in alone.values() if drawn]))


@pytest.mark.parametrize("limits", [(1.0,), (2.0, 1.0), (float("nan"), 1.0)])
def test_a_range_must_rise(limits: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"zoom must be \(low, high\) with low <= high"):
        check_range("zoom", limits)
