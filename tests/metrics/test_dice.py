import math

import numpy as np
import pytest

from uumamba.metrics import dice_coefficient


def test_dice_of_equal_masks_is_one() -> None:
    mask = np.random.default_rng(0).random((4, 5, 6)) > 0.5
    assert dice_coefficient(mask, mask) == 1.0


def test_dice_of_disjoint_masks_is_zero() -> None:
    mask = np.array([True, False])
    assert dice_coefficient(mask, ~mask) == 0.0


def test_dice_of_shifted_cubes_is_the_share_that_overlaps() -> None:
    prediction, label = np.zeros((8, 8, 8), bool), np.zeros((8, 8, 8), bool)
    prediction[1:5, 2:6, 2:6] = True
    label[2:6, 2:6, 2:6] = True
    # Cubes of 4 x 4 x 4 = 64 voxels share 3 x 4 x 4 = 48: 2 * 48 / (64 + 64).
    assert dice_coefficient(prediction, label) == 0.75


def test_dice_of_a_total_miss_is_zero() -> None:
    label = np.array([[False, True]])
    assert dice_coefficient(np.zeros_like(label), label) == 0.0
    assert dice_coefficient(label, np.zeros_like(label)) == 0.0


def test_dice_of_two_empty_masks_is_nan() -> None:
    assert math.isnan(dice_coefficient(np.zeros((2, 2), bool), np.zeros((2, 2), bool)))


def test_dice_refuses_label_maps_that_are_not_boolean() -> None:
    with pytest.raises(
        TypeError, match=r"prediction must be a boolean array such as `labels == 3`, got an array of uint8"
    ):
        dice_coefficient(np.zeros(3, np.uint8), np.zeros(3, bool))
    with pytest.raises(TypeError, match="label must be a boolean array such as `labels == 3`, got list"):
        dice_coefficient(np.zeros(3, bool), [True, False, True])  # type: ignore[arg-type]  # wrong on purpose


def test_dice_refuses_masks_on_different_grids() -> None:
    with pytest.raises(ValueError, match=r"one grid, got shapes \(1, 4\) and \(4, 1\)"):
        dice_coefficient(np.zeros((1, 4), bool), np.zeros((4, 1), bool))
