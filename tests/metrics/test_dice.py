import numpy as np

from uumamba.metrics import dice_coefficient


def test_dice_of_disjoint_masks_is_zero() -> None:
    mask = np.array([True, False])
    assert dice_coefficient(mask, ~mask) == 0.0


def test_dice_of_shifted_cubes_is_the_share_of_overlap() -> None:
    prediction, label = np.zeros((8, 8, 8), bool), np.zeros((8, 8, 8), bool)
    prediction[1:5, 2:6, 2:6] = True
    label[2:6, 2:6, 2:6] = True
    # Cubes of 4 x 4 x 4 = 64 voxels share 3 x 4 x 4 = 48: 2 * 48 / (64 + 64).
    assert dice_coefficient(prediction, label) == 0.75
