"""Fingerprints of training data, and inputs unlike it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import permutations, product

import numpy as np
import pytest

from uumamba.data.case_figures import CaseFigures, measure_prediction, measure_prepared
from uumamba.data.fingerprint import FEWEST_CASES, Fingerprint, make_fingerprint
from uumamba.data.label_scheme import IGNORED
from uumamba.data.orientation_template import CELLS
from uumamba.data.prepared import PreparedCase
from uumamba.data.preprocess import PreprocessRecipe, preprocess
from uumamba.inference import select_planes

CLASSES = {"RV": 1, "LV": 2}


def draw_case(seed: int) -> CaseFigures:
    rng = np.random.default_rng(seed)
    slope = np.linspace(-1, 1, CELLS)[:, None] + 2 * np.linspace(-1, 1, CELLS)
    return CaseFigures(
        patient_id=f"patient{seed // 2}",
        lengths={"spacing between slices": rng.uniform(5, 10), "field of view": rng.uniform(300, 400)},
        intensities={"50% quantile of intensities": rng.uniform(-0.5, -0.3)},
        volumes_ml={"RV": rng.uniform(60, 200), "LV": rng.uniform(60, 200)},
        thumbnail=slope + rng.normal(0, 0.3, (CELLS, CELLS)),
    )


@pytest.fixture(scope="module")
def fingerprint() -> Fingerprint:
    found = make_fingerprint(map(draw_case, range(80)))
    assert found is not None
    return found


def test_cases_like_the_training_data_give_no_remark(fingerprint: Fingerprint) -> None:
    assert [fingerprint.describe_outside(draw_case(seed)) for seed in range(1000, 1100)] == [[]] * 100


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        ({"lengths": {"spacing between slices": 1.0, "field of view": 350.0}}, "spacing between slices 1 mm, not 4.0"),
        ({"lengths": {"spacing between slices": 8.0, "field of view": 43.0}}, "field of view 43 mm, not 24"),
        ({"intensities": {"50% quantile of intensities": 0.4}}, "50% quantile of intensities 0.4, not -0.5"),
        ({"volumes_ml": {"RV": 100.0, "LV": 585.0}}, "LV 585 ml, not 4"),
        ({"volumes_ml": {"RV": 0.0, "LV": 100.0}}, "RV 0 ml, not 4"),
        ({"volumes_ml": {"RV": 0.0, "LV": 0.0}, "thumbnail": None}, "no structure found"),
        ({"thumbnail": draw_case(0).thumbnail[::-1]}, "surroundings as if the rows were"),
        ({"thumbnail": draw_case(0).thumbnail[:, ::-1]}, "surroundings as if the columns were"),
    ],
)
def test_each_figure_outside_is_named_alone(fingerprint: Fingerprint, change: dict[str, object], remark: str) -> None:
    (found,) = fingerprint.describe_outside(replace(draw_case(0), **change))
    assert found.startswith(remark)


def test_a_turned_image_is_named_with_both_axes(fingerprint: Fingerprint) -> None:
    thumbnail = draw_case(0).thumbnail
    assert thumbnail is not None
    (found,) = fingerprint.describe_outside(replace(draw_case(0), thumbnail=thumbnail[::-1, ::-1]))
    assert found == "surroundings as if the rows and columns were in reverse order"


def test_images_without_a_side_are_never_called_mirrored() -> None:
    rng = np.random.default_rng(0)
    cases = [replace(draw_case(seed), thumbnail=rng.normal(size=(CELLS, CELLS))) for seed in range(60)]
    found = make_fingerprint(cases)
    assert found is not None
    assert found.orientation.weights == {}


def test_few_cases_have_no_fingerprint() -> None:
    assert make_fingerprint(map(draw_case, range(FEWEST_CASES - 1))) is None
    assert make_fingerprint(map(draw_case, range(FEWEST_CASES))) is not None


def test_a_stored_fingerprint_is_the_same(fingerprint: Fingerprint) -> None:
    assert Fingerprint.from_json(fingerprint.to_json()) == fingerprint


def test_folds_share_the_union_of_their_ranges() -> None:
    one, other = (make_fingerprint(map(draw_case, range(start, start + 40))) for start in (0, 40))
    assert one is not None
    assert other is not None
    merged = Fingerprint.merge([one, other])
    for name, (low, high) in merged.volumes_ml.items():
        assert low == min(each.volumes_ml[name][0] for each in (one, other))
        assert high == max(each.volumes_ml[name][1] for each in (one, other))


@pytest.mark.parametrize("axes", [*permutations(range(3))])
def test_a_scan_has_the_same_figures_in_training_and_prediction(axes: Sequence[int]) -> None:
    rng = np.random.default_rng(0)
    image = rng.random((30, 40, 5)).astype(np.float32) + np.linspace(0, 3, 40)[:, None]
    label = np.zeros(image.shape, np.uint8)
    label[10:16, 20:30, 1:3], label[16:22, 20:30, 2:4] = 1, 2
    spacing, recipe = (2.0, 1.5, 8.0), _NATIVE
    for flips in product((1, -1), repeat=3):
        affine = np.eye(4)
        affine[:3, :3] = np.diag([mm * sign for mm, sign in zip(spacing, flips, strict=True)])[:, axes]
        stored = tuple(slice(None, None, sign) for sign in flips)
        native, given = image[stored].transpose(axes), label[stored].transpose(axes)
        array, prepared, geometry = preprocess(
            native, spacing_mm=[spacing[axis] for axis in axes], affine=affine, recipe=recipe, label=given
        )
        assert prepared is not None
        locations = np.concatenate([np.argwhere(prepared == value) for value in (1, 2)])
        counts = {value: int((prepared == value).sum()) for value in (0, 1, 2)}
        rows = np.concatenate([np.full((len(locations), 1), 1), locations], axis=1)
        case = PreparedCase("a", array, prepared, rows, geometry, counts)
        trained = measure_prepared(case, classes=CLASSES, patient_id="")
        predicted = measure_prediction(partial(select_planes, array), given, geometry=geometry, classes=CLASSES)
        assert trained.lengths == predicted.lengths
        assert trained.intensities == predicted.intensities
        assert predicted.volumes_ml == pytest.approx(dict.fromkeys(CLASSES, 6 * 10 * 2 * 0.024))
        assert trained.volumes_ml == pytest.approx(predicted.volumes_ml)
        np.testing.assert_allclose(trained.thumbnail, predicted.thumbnail, atol=1e-9)


def test_ignored_voxels_are_no_surroundings() -> None:
    label = np.zeros((4, 20, 20), np.uint8)
    label[2, 5:8, 5:8] = 1
    image = np.random.default_rng(0).random((1, 4, 20, 20)).astype(np.float32)
    _, _, geometry = preprocess(image[0], spacing_mm=(8.0, 2.0, 2.0), recipe=_NATIVE, affine=_SLICES_FIRST)
    rows = np.array([[1, 2, 6, 6]])
    ignored = np.where((label == 0) & (np.arange(20) > 12), IGNORED, label).astype(np.uint8)
    cases = [PreparedCase("a", image, each, rows, geometry, {1: 9}) for each in (label, ignored)]
    one, other = (measure_prepared(case, classes={"LV": 1}, patient_id="") for case in cases)
    np.testing.assert_array_equal(one.thumbnail, other.thumbnail)


_NATIVE = PreprocessRecipe(spacing_mm=(None, None, None))
_SLICES_FIRST = np.array([[0, 0, 2.0, 0], [0, 2.0, 0, 0], [8.0, 0, 0, 0], [0, 0, 0, 1]])


def test_a_prepared_case_of_an_older_version_without_counts_has_the_same_volumes() -> None:
    image = np.random.default_rng(0).random((1, 4, 20, 20)).astype(np.float32)
    label = np.zeros((4, 20, 20), np.uint8)
    label[1:3, 5:8, 5:8] = 1
    _, _, geometry = preprocess(image[0], spacing_mm=(8.0, 2.0, 2.0), recipe=_NATIVE, affine=_SLICES_FIRST)
    rows = np.array([[1, 1, 6, 6], [1, 2, 6, 6]])
    old, new = (PreparedCase("a", image, label, rows, geometry, counts) for counts in ({}, {0: 1582, 1: 18}))
    volumes = [measure_prepared(case, classes={"LV": 1}, patient_id="").volumes_ml for case in (old, new)]
    assert volumes == [{"LV": 18 * 0.032}] * 2
