"""Preprocessing of several channels: each normalised on its own, one crop for all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uumamba.config import read_config
from uumamba.data.case import Case
from uumamba.data.foreground import compute_statistics, store_foreground
from uumamba.data.prepared import open_prepared, write_prepared
from uumamba.data.preprocess import CtStatistics, Preprocessing, PreprocessRecipe, preprocess
from uumamba.data.recipe import choose_normalisation
from uumamba.data.warn import ScanWarning

SHAPE, SPACING_MM = (20, 18, 8), (1.0, 1.0, 4.0)
TARGET = (None, 1.5, 1.5)
STATISTICS = CtStatistics(-100.0, 300.0, 50.0, 80.0)


def make_image(first: slice = slice(2, 15), second: slice = slice(5, 18), *, ct: bool = False) -> np.ndarray:
    """Make two channels with content in different boxes, the second one in Hounsfield units or not."""
    noise = np.random.default_rng(0)
    image = np.zeros((2, *SHAPE), np.float32)
    image[0, first, 3:14, 1:6] = noise.normal(100, 20, image[0, first, 3:14, 1:6].shape)
    if ct:
        image[1] = -1024
    image[1, second, 2:12, 2:7] = noise.normal(40, 60, image[1, second, 2:12, 2:7].shape)
    return image


def make_recipe(*words: str, statistics: Any = None) -> PreprocessRecipe:
    normalisation: Any = words if len(words) > 1 else words[0]
    return PreprocessRecipe(TARGET, normalisation=normalisation, ct_statistics=statistics)


def run(image: np.ndarray, recipe: PreprocessRecipe, **options: Any) -> tuple[np.ndarray, Any, Any]:
    return preprocess(image, spacing_mm=SPACING_MM, recipe=recipe, case_id="c7", **options)


def test_the_crop_is_the_union_of_every_channels_content_and_of_the_label() -> None:
    label = np.zeros(SHAPE, np.uint8)
    label[9, 16, 4] = 1
    _, _, geometry = run(make_image(), make_recipe("zscore"), label=label)
    # Native x from 2 (first channel) to 18 (second), y from 2 (second) to 17 (label), z from 1 (first) to 7 (second).
    assert sorted(zip(geometry.crop_start, geometry.crop_stop, geometry.axes, strict=True), key=lambda box: box[2]) == [
        (2, 18, 0),
        (2, 17, 1),
        (1, 7, 2),
    ]


def test_the_content_of_each_channel_is_found_by_its_normalisation() -> None:
    recipe = make_recipe("zscore", "ct", statistics=(None, STATISTICS))
    _, _, geometry = run(make_image(ct=True), recipe)
    assert geometry.crop_stop[geometry.axes.index(0)] == 18, "air of CT is no content"
    _, _, whole = run(make_image(ct=True), make_recipe("zscore"))
    assert whole.cropped_shape == (8, 18, 20), "-1024 is content of an image that is no CT"


@pytest.mark.parametrize(
    ("words", "statistics"),
    [
        (("zscore",), None),
        (("zscore", "none"), None),
        (("none", "ct"), (None, STATISTICS)),
        (("ct", "zscore"), (STATISTICS, None)),
        (("ct",), STATISTICS),
    ],
)
def test_each_channel_equals_its_own_preparation(words: Sequence[str], statistics: Any) -> None:
    image = make_image()
    image[1] = np.where(image[0] > 0, 2 * image[0] + 5, 0)
    for channel, word in enumerate(words if len(words) > 1 else words * 2):
        image[channel][image[channel] == 0] = -1024 if word == "ct" else 0
    both, _, geometry = run(image, make_recipe(*words, statistics=statistics))
    assert both.shape == (2, *geometry.prepared_shape)
    for channel, word in enumerate(words if len(words) > 1 else words * 2):
        one = statistics[channel] if isinstance(statistics, tuple) else statistics
        alone, _, its_geometry = run(image[channel], make_recipe(word, statistics=one))
        assert its_geometry == geometry
        assert np.array_equal(both[channel : channel + 1], alone)


def test_none_keeps_the_values() -> None:
    image = make_image()
    kept, _, geometry = run(image, PreprocessRecipe((None, None, None), normalisation="none"))
    assert np.array_equal(kept, geometry.orient(image)[(..., *geometry.crop)])


def test_slabs_of_several_channels_are_stored_as_the_array(tmp_path: Path) -> None:
    image, recipe = make_image(), make_recipe("zscore", "none")
    array, _, geometry = run(image, recipe)
    work = Preprocessing(image, spacing_mm=SPACING_MM, recipe=recipe)
    label = np.zeros(geometry.prepared_shape, np.uint8)
    options: dict[str, Any] = {"label": label, "geometry": geometry, "key": "k", "channels": work.channels}
    write_prepared(tmp_path, "c7", image=work.image_slabs(), **options)
    assert np.array_equal(open_prepared(tmp_path, "c7").image, array.astype(np.float16))


def test_a_value_too_large_for_float16_is_refused_if_values_are_kept(tmp_path: Path, refused: Any) -> None:
    image = make_image()
    image[1] *= 1e4
    array, _, geometry = run(image, make_recipe("zscore", "none"))
    label = np.zeros(geometry.prepared_shape, np.uint8)
    with refused("image", case_id="c7"):
        write_prepared(tmp_path, "c7", image=array, label=label, geometry=geometry, key="k", channels=2)


def test_hounsfield_units_are_corrected_in_the_channel_that_lacks_the_intercept() -> None:
    recipe = make_recipe("zscore", "ct", statistics=(None, STATISTICS))
    image = make_image(ct=True)
    shifted = image + np.array([0, 1024], np.float32).reshape(2, 1, 1, 1)
    with pytest.warns(ScanWarning, match="c7, channel 1: its values are Hounsfield units plus 1024"):
        found, _, _ = run(shifted, recipe)
    np.testing.assert_allclose(found, run(image, recipe)[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "value", "got"),
    [
        (("zscore", "zscore"), 0, "0 everywhere"),
        (("none", "zscore"), np.nan, "NaN or infinity"),
        (("zscore", "ct"), -1000, -1000.0),
        (("zscore", "zscore"), 3, "equal percentiles 0.5 and 99.5 (both 3)"),
    ],
)
def test_a_channel_without_content_is_refused_by_its_number(
    words: Sequence[str], value: float, got: Any, refused: Any
) -> None:
    image = make_image()
    image[1] = value
    statistics = STATISTICS if "ct" in words else None
    with refused("channel 1", got, case_id="c7"):
        run(image, make_recipe(*words, statistics=statistics))


def test_a_channel_that_keeps_its_values_may_be_empty_but_not_all_of_them(refused: Any) -> None:
    image = make_image()
    image[1] = 0
    assert not run(image, make_recipe("zscore", "none"))[0][1].any()
    with refused("image", "0 everywhere", case_id="c7"):
        run(np.zeros_like(image), make_recipe("none"))


def test_a_recipe_of_another_number_of_channels_is_refused(refused: Any) -> None:
    with refused("normalisation", ("zscore", "none", "none")):
        run(make_image(), make_recipe("zscore", "none", "none"))
    with refused("normalisation", ("zscore", "none")):
        read_config("demo", ["preprocess.normalisation=[zscore,none]"]).preprocess.build(["T1"])
    with refused("preprocess.normalisation", ("zscore", "none")):
        read_config("demo", ["preprocess.normalisation=[zscore,none]"]).build_recipe(["T1"])


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        (["CT"], "ct"),
        (["cine MRI"], "zscore"),
        (["CT", "PET", "noNorm", "none"], ("ct", "zscore", "none", "none")),
        (["T1", "FLAIR"], "zscore"),
    ],
)
def test_auto_chooses_the_normalisation_by_the_channels_names(channels: Sequence[str], words: Any) -> None:
    config = read_config("demo", ["preprocess.normalisation=auto"])
    assert config.resolve_channels(channels).as_json()["preprocess"]["normalisation"] in (words, [*words])
    assert config.preprocess.build(channels).normalisation == choose_normalisation(channels) == words


def test_a_recipe_of_channels_survives_json_and_is_complete_with_every_statistics() -> None:
    wanted = make_recipe("ct", "zscore", "ct")
    assert not wanted.is_complete
    assert not wanted.with_statistics([STATISTICS, None, None]).is_complete
    found = wanted.with_statistics([STATISTICS, None, CtStatistics(0, 1, 0.5, 0.1)])
    assert found.is_complete
    assert found.completes(wanted)
    assert PreprocessRecipe.from_json(found.to_json()) == found
    assert [one.ct_statistics for one in found.split(3)] == [STATISTICS, None, CtStatistics(0, 1, 0.5, 0.1)]


def test_each_channel_of_ct_gets_the_statistics_of_its_own_foreground(tmp_path: Path, write_scan: Any) -> None:
    image = make_image(ct=True)
    label = (image[1] > 0).astype(np.uint8)
    image[0] = np.maximum(2 * image[1] + 100, -1024)
    names = ("arterial CT", "T1", "portal CT")
    channels = [
        write_scan(f"{index}.nii.gz", array) for index, array in enumerate((image[0], np.ones(SHAPE), image[1]))
    ]
    case = Case("c7", "p", "d", tuple(channels), write_scan("label.nii.gz", label))
    store_foreground(case, folder=tmp_path, structures={"a": 1}, channels=names, sampled=[0, 2])
    found = [
        compute_statistics(["c7"], folder=tmp_path, clip_percentiles=(0.5, 99.5), row=row).mean_hu for row in (0, 1)
    ]
    np.testing.assert_allclose(found, [each[label == 1].mean() for each in (image[0], image[1])], rtol=1e-5)
