"""Draws of a factor around 1."""

from uumamba.data.augmentation.parameters import draw_factor
from uumamba.runtime.seeds import generator_for


def test_factors_below_and_above_1_are_equally_likely() -> None:
    drawn = draw_factor(generator_for("test"), (0.7, 1.5), 2000)
    assert drawn.min() >= 0.7
    assert drawn.max() <= 1.5
    assert abs((drawn < 1).float().mean() - 0.5) < 4 * (0.25 / 2000) ** 0.5
    # Uniform on either side: each mean is in the middle, with an error of width / sqrt(12 n) and n about 1000.
    assert abs(drawn[drawn < 1].mean() - 0.85) < 4 * 0.3 / (12 * 900) ** 0.5
    assert abs(drawn[drawn >= 1].mean() - 1.25) < 4 * 0.5 / (12 * 900) ** 0.5


def test_factors_on_one_side_of_1_are_uniform() -> None:
    drawn = draw_factor(generator_for("test"), (1.0, 2.0), 1000)
    assert abs(drawn.mean() - 1.5) < 4 / (12 * 1000) ** 0.5
    assert 1 <= drawn.min() < 1.01 < 1.99 < drawn.max() < 2
