"""Tests of the removal of islands and its choice on validation cases."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.ndimage import label as label_components

from uumamba.inference.postprocess import LargestComponents, choose_postprocess, keep_largest

HEART = {"RV": 1, "MYO": 2, "LV": 3}
MAPS = arrays(np.uint8, array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=6), elements=st.integers(0, 3))


def make_heart() -> np.ndarray[Any, Any]:
    label = np.zeros((4, 24, 24), np.uint8)
    label[:, 6:14, 6:14] = 2
    label[:, 8:12, 8:12] = 3
    label[:, 6:14, 14:18] = 1
    return label


@given(MAPS, st.booleans(), st.sets(st.integers(1, 3)))
def test_postprocessing_removes_whole_components_and_adds_nothing(
    label: np.ndarray[Any, Any], union: bool, values: set[int]
) -> None:
    before = label.copy()
    found = LargestComponents(union, tuple(sorted(values)))(label)
    assert np.array_equal(label, before)
    assert found.dtype == label.dtype
    assert ((found == label) | (found == 0)).all()
    for value in values:
        assert label_components(found == value, np.ones((3,) * label.ndim))[1] <= 1
    assert np.array_equal(LargestComponents(union, tuple(sorted(values)))(found), found) or union
    if not values and not union:
        assert np.array_equal(found, label)


@given(arrays(np.bool_, array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=6)))
def test_the_kept_component_is_the_largest(mask: np.ndarray[Any, Any]) -> None:
    parts, count = label_components(mask, np.ones((3,) * mask.ndim))
    sizes = [int((parts == index).sum()) for index in range(1, count + 1)]
    kept = keep_largest(mask)
    assert int(kept.sum()) == max(sizes, default=0)
    assert not (kept & ~mask).any()
    assert label_components(kept, np.ones((3,) * mask.ndim))[1] == min(count, 1)


def keep_largest_at_once(mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Number the components of the whole array; of equal ones the first is kept."""
    parts, _ = label_components(mask, np.ones((3,) * mask.ndim))
    return parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())


@pytest.mark.parametrize(("shape", "share"), [((9, 1000, 1100), 0.06), ((4, 2100, 2000), 0.05)])
def test_components_that_cross_slabs_are_kept_whole(shape: tuple[int, ...], share: float) -> None:
    mask = np.random.default_rng(0).random(shape, dtype=np.float32) < share
    mask[:, 500:] = False
    mask[0, 0, 0] = mask[-1, -1, -1] = True  # the box around all components is the whole array
    mask[::2, 600, 10:900] = mask[:, 600, 10] = True  # a comb: teeth that meet only across the planes
    mask[:, 600, 899] = False
    assert np.array_equal(keep_largest(mask), keep_largest_at_once(mask))
    label = np.where(mask, 2, 0).astype(np.uint8)
    label[mask & (np.arange(shape[2]) % 7 == 0)] = 1
    union = np.where(keep_largest_at_once(mask), label, 0)
    assert np.array_equal(LargestComponents(union=True)(label), union)
    ones = union * ~((union == 1) & ~keep_largest_at_once(union == 1))
    assert np.array_equal(LargestComponents(union=True, values=(1,))(label), ones)


def test_of_two_largest_components_the_first_is_kept_in_every_slab() -> None:
    mask = np.zeros((9, 1000, 1100), dtype=np.bool_)
    mask[0, 0, 0] = mask[-1, -1, -1] = True
    mask[1, 900, :20] = mask[6, 5, :20] = mask[7:, 500, :10] = True
    assert np.argwhere(keep_largest(mask))[0].tolist() == [1, 900, 0]
    mask[1, 900, 0] = False
    assert np.argwhere(keep_largest(mask))[0].tolist() == [6, 5, 0]


def test_islands_far_from_the_heart_are_removed_by_the_choice() -> None:
    label = make_heart()
    prediction = label.copy()
    prediction[0, 0, 0:2], prediction[1, 23, 23] = 3, 1
    choice = choose_postprocess([(prediction, label), (label, label)], HEART)
    assert choice.postprocess == LargestComponents(union=True, values=(1, 2, 3))
    assert np.array_equal(choice.postprocess(prediction), label)
    assert choice.dice == 1.0
    assert choice.dice_without < 1.0
    assert choice.cases == 2


def test_anatomy_of_several_parts_is_kept_whole() -> None:
    label = np.zeros((12, 12), np.uint8)
    label[1:4, 1:4], label[8:11, 8:11] = 1, 1  # left and right coronary tree: one structure, two parts
    label[1:4, 8:11] = 2
    prediction = label.copy()
    prediction[11, 0] = 2
    choice = choose_postprocess([(prediction, label)], {"coronaries": 1, "aorta": 2})
    assert choice.postprocess == LargestComponents(union=False, values=(2,))
    assert choice.dice == 1.0


def test_structures_that_no_case_has_are_left_alone() -> None:
    label = np.ones((4, 4), np.uint8)
    choice = choose_postprocess([(label, label)], {"a": 1, "b": 2})
    assert choice.postprocess.values == (1,)
    empty = choose_postprocess([(np.zeros((4, 4), np.uint8),) * 2], {"a": 1})
    assert empty.postprocess == LargestComponents()
    assert np.isnan(empty.dice)
    assert np.isnan(empty.dice_without)


def test_the_choice_equals_the_best_of_all_combinations() -> None:
    generator = np.random.default_rng(0)
    pairs = [
        (np.where(generator.random((10, 10)) < 0.06, 3, make_heart()[0, 4:14, 6:16]).astype(np.uint8),)
        for _ in range(4)
    ]
    cases = [(prediction, make_heart()[0, 4:14, 6:16]) for (prediction,) in pairs]

    def score(union: bool, values: tuple[int, ...]) -> float:
        maps = [(LargestComponents(union, values)(prediction), label) for prediction, label in cases]
        overlap = [
            [2 * ((p == v) & (t == v)).sum() / ((p == v).sum() + (t == v).sum()) for v in (1, 2, 3)] for p, t in maps
        ]
        return float(np.mean(np.mean(overlap, axis=0)))

    subsets = [tuple(v for v in (1, 2, 3) if bits >> v - 1 & 1) for bits in range(8)]
    best = max(score(union, values) for union in (False, True) for values in subsets)
    choice = choose_postprocess(cases, HEART)
    assert choice.dice == pytest.approx(best)
    assert score(choice.postprocess.union, choice.postprocess.values) == pytest.approx(best)


def test_a_choice_needs_a_case(refused: Any) -> None:
    with refused("pairs", got="no case"):
        choose_postprocess([], HEART)


@pytest.mark.parametrize("shape", [(1, 24, 24), (24, 24)])
def test_a_data_set_of_many_structures_or_one_flat_slice_gets_a_choice(shape: tuple[int, ...]) -> None:
    label = np.zeros(shape, np.uint8)
    for value in range(1, 31):
        label[..., value % 6 * 4 : value % 6 * 4 + 2, value // 6 * 4 : value // 6 * 4 + 2] = value
    prediction = label.copy()
    prediction[..., 23, 0] = 7
    choice = choose_postprocess([(prediction, label)], {f"part {value}": value for value in range(1, 31)})
    assert choice.postprocess == LargestComponents(union=False, values=tuple(range(1, 31)))
    assert np.array_equal(choice.postprocess(prediction), label)
    one = choose_postprocess([((label > 0).astype(np.uint8), (label == 7).astype(np.uint8))], {"lesion": 1})
    assert one.dice >= one.dice_without


def test_ignored_voxels_do_not_count_for_the_choice() -> None:
    label = make_heart()
    prediction = label.copy()
    prediction[0, 0, 0:2] = 3
    label[0, 0, 0:2] = 255
    choice = choose_postprocess([(prediction, label)], HEART, ignore_label=255)
    assert choice.dice == choice.dice_without == 1.0
    assert choose_postprocess([(prediction, label)], HEART).dice_without < 1.0


def test_of_overlapping_regions_only_the_union_is_chosen() -> None:
    label = make_heart()
    prediction = label.copy()
    prediction[0, 0, 0:2] = 3
    regions = {"whole": (1, 2, 3), "inside": (3,)}
    choice = choose_postprocess([(prediction, label)], HEART, regions=regions)
    assert choice.postprocess == LargestComponents(union=True, values=())
    assert choice.dice == 1.0
    whole, inside = (label > 0).sum(), (label == 3).sum()
    found = np.mean([2 * size / (2 * size + 2) for size in (whole, inside)])
    assert choice.dice_without == pytest.approx(found)
