"""``restore`` inverts ``preprocess``, bit for bit at native spacing."""

import json
from itertools import permutations, product
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uumamba.data import chunks
from uumamba.data.preprocess import (
    CtStatistics,
    Preprocessing,
    PreprocessRecipe,
    preprocess,
    restore,
    restore_label,
    restore_probabilities,
)
from uumamba.data.warn import ScanWarning

KEPT = PreprocessRecipe(spacing_mm=(None, None, None))
CARDIAC = PreprocessRecipe(spacing_mm=(None, 1.5, 1.5))
CT = PreprocessRecipe((None, None, None), normalisation="ct", ct_statistics=CtStatistics(-100, 300, 50, 25))
ORIENTATIONS = list(product(permutations(range(3)), product((1, -1), repeat=3)))


def dice(prediction: np.ndarray, label: np.ndarray) -> float:
    return 2 * np.count_nonzero(prediction & label) / (np.count_nonzero(prediction) + np.count_nonzero(label))


def one_hot(label: np.ndarray, classes: int) -> np.ndarray:
    return np.stack([label == value for value in range(classes)]).astype(np.float32)


@pytest.fixture(scope="module")
def small_scan() -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    generator = np.random.default_rng(0)
    image = generator.random((20, 24, 6)).astype(np.float32) + 1
    image[:3], image[:, 22:], image[:, :, 5:] = 0, 0, 0
    label = np.zeros(image.shape, dtype=np.uint8)
    label[6:14, 8:19, 1:4] = generator.integers(0, 4, (8, 11, 3))
    affine = np.diag([1.25, 1.25, 8.0, 1.0])
    return nib.Nifti1Image(image, affine), nib.Nifti1Image(label, affine)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_all_48_orientations_give_one_array_and_are_restored_exactly(
    small_scan: tuple[nib.Nifti1Image, nib.Nifti1Image], order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    turn = np.array(list(zip(order, signs, strict=True)))
    image, label = (each.as_reoriented(turn) for each in small_scan)
    turned_label = np.asarray(label.dataobj)
    for recipe in (KEPT, CARDIAC):
        expected = preprocess(
            small_scan[0].get_fdata(dtype=np.float32),
            spacing_mm=(1.25, 1.25, 8),
            affine=small_scan[0].affine,
            recipe=recipe,
        )[0]
        array, prepared_label, geometry = preprocess(
            np.asarray(image.dataobj),
            spacing_mm=image.header.get_zooms(),
            affine=image.affine,
            label=turned_label,
            recipe=recipe,
        )
        assert prepared_label is not None
        assert np.array_equal(array, expected)
        restored = restore_label(prepared_label, geometry)
        assert restored.shape == image.shape
        if recipe is KEPT:
            assert np.array_equal(restored, turned_label)
            assert np.array_equal(restore(one_hot(prepared_label, 4), geometry), turned_label)


@given(
    shape=st.tuples(st.integers(2, 9), st.integers(1, 9), st.integers(1, 9)),
    spacing_mm=st.tuples(*[st.floats(0.3, 12)] * 3),
    seed=st.integers(0, 1000),
)
def test_at_native_spacing_labels_are_restored_bit_for_bit(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    image = generator.random(shape)
    label = generator.integers(0, 200, shape).astype(np.uint8)
    _, prepared, geometry = preprocess(image, spacing_mm=spacing_mm, recipe=KEPT, label=label)
    assert prepared is not None
    assert np.array_equal(restore_label(prepared, geometry), label)


@pytest.mark.parametrize("spacing_mm", [(1.2, 1.2, 10.0), (1.9, 1.9, 5.0)])
def test_at_another_spacing_smooth_structures_are_restored_with_a_dice_of_0_97(
    heart: tuple[np.ndarray, np.ndarray], spacing_mm: tuple[float, ...]
) -> None:
    image, label = heart
    array, prepared, geometry = preprocess(image, spacing_mm=spacing_mm, recipe=CARDIAC, label=label)
    assert prepared is not None
    if spacing_mm[0] == 1.2:
        # Cropped to 205 x 235 x 10, then 235 x 1.2 / 1.5 = 188 and 205 x 1.2 / 1.5 = 164.
        assert (array.shape, array.dtype) == ((1, 10, 188, 164), np.float32)
        np.testing.assert_allclose(geometry.prepared_spacing_mm, (10.0, 1.5, 1.5))
    restored, decided = restore_label(prepared, geometry), restore(one_hot(prepared, 4), geometry)
    assert restored.shape == decided.shape == label.shape
    for value, found in product((1, 2, 3), (restored, decided)):
        assert dice(found == value, label == value) >= 0.97
    native = restore_probabilities(one_hot(prepared, 4), geometry)
    assert (native.shape, native.dtype) == ((4, *label.shape), np.float32)
    np.testing.assert_allclose(native.sum(axis=0), 1, atol=1e-5)
    assert (native[0, :7] == 1).all()  # outside the crop
    assert (native[1:, :7] == 0).all()
    assert np.array_equal(native.argmax(axis=0), decided)


def test_the_crop_is_the_box_of_voxels_other_than_zero_and_of_the_label() -> None:
    image = np.zeros((8, 9, 4))
    image[2:5, 3:7, 1:3] = np.random.default_rng(0).random((3, 4, 2)) + 1
    assert preprocess(image, spacing_mm=(1, 1, 5), recipe=KEPT)[2].cropped_shape == (2, 4, 3)
    label = np.zeros(image.shape, dtype=np.uint8)
    label[7, 3, 1] = 2
    _, prepared, geometry = preprocess(image, spacing_mm=(1, 1, 5), recipe=KEPT, label=label)
    assert prepared is not None
    assert geometry.cropped_shape == (2, 4, 6)
    assert np.array_equal(restore_label(prepared, geometry), label)


def test_zscore_clips_and_gives_mean_0_and_variance_1_at_any_scale(heart: tuple[np.ndarray, np.ndarray]) -> None:
    image = heart[0].copy()
    image[100, 100, 5] = 1e6
    array = preprocess(image, spacing_mm=(1, 1, 8), recipe=KEPT)[0]
    assert (array.mean(dtype=np.float64), array.std(dtype=np.float64)) == pytest.approx((0, 1), abs=1e-4)
    scaled = preprocess(image * 7.0, spacing_mm=(1, 1, 8), recipe=KEPT)[0]
    np.testing.assert_allclose(array, scaled, atol=1e-4)
    assert array.max() < 10, "sqrt(552960) without clipping"


def test_ct_is_normalised_by_the_statistics_of_the_data_set() -> None:
    scan = np.array([50.0, -1000.0, 75.0, 900.0]).reshape(4, 1, 1)
    # (50 - 50) / 25, (-100 - 50) / 25, (75 - 50) / 25, (300 - 50) / 25
    assert preprocess(scan, spacing_mm=(1, 1, 1), recipe=CT)[0].ravel().tolist() == [0, -6, 1, 10]


def test_ct_is_cropped_to_voxels_denser_than_lung_and_to_the_label(refused: Any) -> None:
    scan = np.full((9, 8, 7), -1000, dtype=np.int16)
    scan[2:6, 1:5, 3:6] = -499  # denser than lung and air
    scan[3, 3, 4] = 40
    assert preprocess(scan, spacing_mm=(1, 1, 1), recipe=CT)[2].cropped_shape == (3, 4, 4)
    label = np.zeros(scan.shape, dtype=np.uint8)
    label[8, 2, 4] = 1
    geometry = preprocess(scan, spacing_mm=(1, 1, 1), recipe=CT, label=label)[2]
    assert geometry.cropped_shape == (3, 4, 7)
    with refused("image", got="only air", case_id="p7"):
        preprocess(np.minimum(scan, -600), spacing_mm=(1, 1, 1), recipe=CT, case_id="p7")


def test_ct_with_an_offset_of_1024_and_padding_gives_the_array_of_the_corrected_scan() -> None:
    scan = np.random.default_rng(0).normal(30, 25, (20, 22, 9)).round().astype(np.int16)
    scan[:, :4], scan[:, -4:] = -1024, -850
    expected = preprocess(scan, spacing_mm=(1, 1, 1), recipe=CT)[0]
    stored = (scan + 1024).astype(np.int16)
    stored[:2] = -2000
    padded = scan.copy()
    padded[:2] = -1024
    with pytest.warns(ScanWarning) as caught:
        found, _, geometry = preprocess(stored, spacing_mm=(1, 1, 1), recipe=CT, case_id="p7")
    assert len(caught) == 2  # for the shift and for the padding
    assert np.array_equal(found, preprocess(padded, spacing_mm=(1, 1, 1), recipe=CT)[0])
    assert np.array_equal(found, expected[..., -geometry.prepared_shape[2] :])


@pytest.mark.parametrize("voxels", [1, 800])
@pytest.mark.parametrize("recipe", [KEPT, PreprocessRecipe((1.5, 1.1, 1.3)), PreprocessRecipe((9, 1.5, 1.5))])
def test_slabs_equal_the_array_of_preprocess(
    small_scan: tuple[nib.Nifti1Image, nib.Nifti1Image],
    recipe: PreprocessRecipe,
    voxels: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scan, label = (np.asarray(each.dataobj) for each in small_scan)
    whole, whole_label, _ = preprocess(scan, spacing_mm=(1.25, 1.25, 8), recipe=recipe, label=label)
    monkeypatch.setattr(chunks, "CHUNK_VOXELS", voxels)
    work = Preprocessing(scan, spacing_mm=(1.25, 1.25, 8), recipe=recipe, label=label)
    slabs, label_slabs = list(work.image_slabs()), list(work.label_slabs())
    assert len(slabs) > 1
    # Sums over other slabs differ in the last bits of float64, and rarely in float32.
    np.testing.assert_allclose(np.concatenate(slabs), whole[0], atol=1e-6)
    assert whole_label is not None
    assert np.array_equal(np.concatenate(label_slabs), whole_label)


def test_stored_integers_give_the_array_of_equal_floats() -> None:
    stored = np.random.default_rng(0).integers(0, 900, (20, 24, 6)).astype(">i2")
    for recipe in (CARDIAC, CT):
        arrays = [preprocess(each, spacing_mm=(1, 1, 8), recipe=recipe)[0] for each in (stored, stored.astype(float))]
        assert np.array_equal(*arrays)


@pytest.mark.parametrize(
    ("value", "got"),
    [(0.0, "0 everywhere"), (5.0, "equal percentiles 0.5 and 99.5 (both 5)"), (np.nan, "NaN or infinity")],
)
def test_a_scan_without_content_or_contrast_or_with_nan_is_refused(value: float, got: str, refused: Any) -> None:
    with refused("image", got=got, case_id="p7"):
        preprocess(np.full((4, 4, 4), value), spacing_mm=(1, 1, 1), recipe=KEPT, case_id="p7")


def test_invalid_shapes_and_scores_and_missing_parts_are_refused(refused: Any) -> None:
    scan = np.arange(1.0, 25).reshape(2, 3, 4)
    work = Preprocessing(scan, spacing_mm=(1, 1, 1), recipe=KEPT)
    with refused("label", got=None):
        work.label_slabs()
    with refused("shape", got=(2, 3, 4)):
        restore_label(np.zeros((2, 3, 4), np.uint8), work.geometry)
    with refused("probabilities", got="NaN or infinity"):
        restore(np.full((2, 4, 3, 2), np.nan), work.geometry)
    with refused("probabilities", got="257 classes"):
        restore(np.zeros((257, 4, 3, 2), np.float16), work.geometry)
    with refused("label", got=(2, 3, 5)):
        preprocess(scan, spacing_mm=(1, 1, 1), recipe=KEPT, label=np.zeros((2, 3, 5), np.uint8))
    with refused("ct_statistics", got=None):
        preprocess(scan, spacing_mm=(1, 1, 1), recipe=PreprocessRecipe((None, None, None), normalisation="ct"))


@pytest.mark.parametrize(
    ("key", "got"),
    [
        ("spacing_mm", (None, -1.0, 1.0)),
        ("spacing_mm", (1.0, 1.0)),
        ("clip_percentiles", (99.0, 1.0)),
        ("normalisation", "minmax"),
        ("ct_statistics", CtStatistics(-100, 300, 50, 25)),
    ],
)
def test_an_invalid_recipe_is_refused(refused: Any, key: str, got: Any) -> None:
    with refused(key, got=got):
        PreprocessRecipe(**({"spacing_mm": (None, 1.5, 1.5)} | {key: got}))
    with refused("ct_statistics"):
        CtStatistics(-100, 300, 50, 0)


def test_a_recipe_without_statistics_is_completed_by_one_with_statistics() -> None:
    unfinished = PreprocessRecipe((None, None, None), normalisation="ct")
    assert (unfinished.is_complete, CT.is_complete) == (False, True)
    assert (CT.completes(unfinished), CT.completes(CT), unfinished.completes(CT)) == (True, True, False)
    assert not CT.completes(PreprocessRecipe((1.0, 1.0, 1.0), normalisation="ct"))


@pytest.mark.parametrize("recipe", [CARDIAC, CT])
def test_a_recipe_is_read_from_json_with_defaults_for_missing_keys(recipe: PreprocessRecipe) -> None:
    stored = json.loads(json.dumps(recipe.to_json()))
    assert PreprocessRecipe.from_json(stored) == recipe
    del stored["clip_percentiles"]
    assert PreprocessRecipe.from_json(stored) == recipe


def test_a_spacing_that_would_make_a_giant_prepared_array_is_refused(refused: Any) -> None:
    recipe = PreprocessRecipe(spacing_mm=(1.0, 1.0, 1.0))
    image = np.ones((8, 8, 8), np.int16)
    image[0, 0, 0] = 2
    with refused("spacing_mm", got="1000 x 1000 x 1000 mm, 1907.3 GiB after resampling", case_id="p7"):
        preprocess(image, spacing_mm=(1000, 1000, 1000), recipe=recipe, case_id="p7")
