from collections.abc import Callable

import numpy as np
import pytest

from uumamba.metrics import cl_dice, dice_coefficient

Draw = Callable[..., np.ndarray]


def bar(start: int, stop: int, *, half_width: int = 1) -> np.ndarray:
    """Bar along the last axis, around row 4 and slice 4."""
    mask = np.zeros((9, 9, 30), bool)
    mask[4 - half_width : 5 + half_width, 4 - half_width : 5 + half_width, start:stop] = True
    return mask


def test_cl_dice_is_the_harmonic_mean_of_precision_and_sensitivity() -> None:
    prediction, label = bar(2, 14, half_width=0), bar(4, 24, half_width=0)
    # Lines are their own skeletons. They share 10 voxels, of 12 predicted and 20 labelled ones.
    assert cl_dice(prediction, label) == pytest.approx(2 * (10 / 12) * (10 / 20) / (10 / 12 + 10 / 20), rel=1e-12)


def test_cl_dice_does_not_depend_on_thickness_as_dice_does() -> None:
    thin, thick = bar(3, 27, half_width=0), bar(2, 28, half_width=2)
    # The thick bar's skeleton, its axis, is at most a voxel longer at each end: 24 of 26 voxels are in the thin bar.
    assert cl_dice(thin, thick) >= 2 * (24 / 26) / (1 + 24 / 26) > 0.95
    assert dice_coefficient(thin, thick) < 0.1


def test_a_missed_branch_lowers_cl_dice_much_more_than_dice() -> None:
    label = np.pad(bar(2, 28, half_width=3), ((0, 0), (0, 30), (0, 0)))
    branch = np.zeros_like(label)
    branch[4, 8:38, 15] = True
    # The branch is 30 voxels of 1304, but more than half of the centreline's length: the axis has 26 voxels at most.
    assert dice_coefficient(label, label | branch) > 0.98
    assert cl_dice(label, label | branch) < 2 * 0.5 / 1.5


def shift_half(label: np.ndarray) -> np.ndarray:
    """Shift the second half along the last axis by six rows."""
    middle = label.shape[2] // 2
    return np.concatenate([label[:, :, :middle], np.roll(label, 6, axis=1)[:, :, middle:]], axis=2)


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1, 2)])
def test_flipping_both_masks_changes_cl_dice_by_little(tube: Draw, axes: tuple[int, ...]) -> None:
    label = tube(length_mm=40, radius_mm=3, direction=(3, 2, 4), spacing_mm=(1, 1, 1))
    prediction = shift_half(label)
    flipped = cl_dice(np.flip(prediction, axes), np.flip(label, axes))
    # Of about 40 voxels, the two ends of a skeleton may move.
    assert flipped == pytest.approx(cl_dice(prediction, label), abs=0.1)


def test_cl_dice_of_flat_masks_is_equal_in_2d_and_3d() -> None:
    prediction, label = bar(2, 14)[4], bar(4, 24, half_width=2)[4]
    assert cl_dice(prediction[None], label[None]) == cl_dice(prediction, label)


def test_cl_dice_of_a_total_miss_is_zero() -> None:
    label = bar(2, 14)
    assert cl_dice(np.zeros_like(label), label) == 0.0
    assert cl_dice(label, np.zeros_like(label)) == 0.0
    assert cl_dice(label, bar(20, 28)) == 0.0


def test_cl_dice_of_single_voxels_is_1_if_equal_and_0_if_not() -> None:
    one, other = np.zeros((3, 3), bool), np.zeros((3, 3), bool)
    one[0, 0] = other[0, 1] = True
    assert cl_dice(one, one) == 1.0
    assert cl_dice(one, other) == 0.0
