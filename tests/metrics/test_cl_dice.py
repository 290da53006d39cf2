from collections.abc import Callable

import numpy as np
import pytest

from uumamba.metrics import cl_dice, dice_coefficient

Draw = Callable[..., np.ndarray]


def bar(start: int, stop: int, *, half_width: int = 1) -> np.ndarray:
    """A bar along the last axis, of odd width around row 4 and slice 4."""
    mask = np.zeros((9, 9, 30), bool)
    mask[4 - half_width : 5 + half_width, 4 - half_width : 5 + half_width, start:stop] = True
    return mask


def test_cl_dice_is_the_harmonic_mean_of_precision_and_sensitivity() -> None:
    prediction, label = bar(2, 14, half_width=0), bar(4, 24, half_width=0)
    # Lines are their own skeletons. They share 10 voxels: of 12 that are predicted, and of 20 that are there.
    assert cl_dice(prediction, label) == pytest.approx(2 * (10 / 12) * (10 / 20) / (10 / 12 + 10 / 20), rel=1e-12)


def test_cl_dice_forgives_thickness_where_dice_does_not() -> None:
    thin, thick = bar(3, 27, half_width=0), bar(2, 28, half_width=2)
    # The thick bar's skeleton, its axis, is at most a voxel longer at each end: 24 of 26 voxels lie in the thin bar.
    assert cl_dice(thin, thick) >= 2 * (24 / 26) / (1 + 24 / 26) > 0.95
    assert dice_coefficient(thin, thick) < 0.1


def test_cl_dice_punishes_a_missed_branch_that_dice_hardly_sees() -> None:
    label = np.pad(bar(2, 28, half_width=3), ((0, 0), (0, 30), (0, 0)))
    branch = np.zeros_like(label)
    branch[4, 8:38, 15] = True
    # The branch is 30 voxels of 1304, but more than half of the centreline's length: the axis has 26 voxels at most.
    assert dice_coefficient(label, label | branch) > 0.98
    assert cl_dice(label, label | branch) < 2 * 0.5 / 1.5


def half_astray(label: np.ndarray) -> np.ndarray:
    """The mask up to the middle of its last axis, and shifted by six rows from there on."""
    middle = label.shape[2] // 2
    return np.concatenate([label[:, :, :middle], np.roll(label, 6, axis=1)[:, :, middle:]], axis=2)


def test_empty_space_around_both_masks_changes_nothing(tube: Draw) -> None:
    label = tube(length_mm=30, radius_mm=2, direction=(3, 2, 4), spacing_mm=(1, 1, 1))
    prediction = half_astray(label)
    width = ((1, 0), (0, 2), (3, 3))
    padded = cl_dice(np.pad(prediction, width), np.pad(label, width))
    assert 0 < padded == cl_dice(prediction, label) < 1


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1, 2)])
def test_flipping_both_masks_changes_little(tube: Draw, axes: tuple[int, ...]) -> None:
    label = tube(length_mm=40, radius_mm=3, direction=(3, 2, 4), spacing_mm=(1, 1, 1))
    prediction = half_astray(label)
    flipped = cl_dice(np.flip(prediction, axes), np.flip(label, axes))
    # Of about 40 voxels a skeleton's two ends may lie elsewhere.
    assert flipped == pytest.approx(cl_dice(prediction, label), abs=0.1)


def test_cl_dice_equals_that_of_flat_masks_laid_into_space() -> None:
    prediction, label = bar(2, 14)[4], bar(4, 24, half_width=2)[4]
    assert cl_dice(prediction[None], label[None]) == cl_dice(prediction, label)


def test_cl_dice_of_a_total_miss_is_zero() -> None:
    label = bar(2, 14)
    assert cl_dice(np.zeros_like(label), label) == 0.0
    assert cl_dice(label, np.zeros_like(label)) == 0.0
    assert cl_dice(label, bar(20, 28)) == 0.0


def test_cl_dice_of_single_voxels_is_whether_they_meet() -> None:
    one, other = np.zeros((3, 3), bool), np.zeros((3, 3), bool)
    one[0, 0] = other[0, 1] = True
    assert cl_dice(one, one) == 1.0
    assert cl_dice(one, other) == 0.0
