import numpy as np
import pytest

from uumamba.evaluation.baselines import IntensityThreshold, MeanShapeAtlas
from uumamba.metrics import dice_coefficient

each_baseline = pytest.mark.parametrize("baseline", [MeanShapeAtlas(), IntensityThreshold()])


def ring(shape=(6, 48, 48), *, centre=(0.5, 0.5), radius=0.25, seed=0):
    """Bright disc (2) in a ring (1) on a dark background.

    Sizes are relative to the image; the noise is a tenth of the contrast.
    """
    y, x = ((np.arange(size) + 0.5) / size for size in shape[1:])
    distance = np.hypot(y[:, None] - centre[0], x[None, :] - centre[1])
    plane = np.where(distance < radius, 2, np.where(distance < 1.6 * radius, 1, 0)).astype(np.uint8)
    label = np.repeat(plane[None], shape[0], axis=0)
    image = label + 0.1 * np.random.default_rng(seed).standard_normal(label.shape)
    return image.astype(np.float32), label


def dice(prediction, label, value=2):
    return dice_coefficient(prediction == value, label == value)


def fit(baseline, cases):
    return baseline.fit([image for image, _ in cases], [label for _, label in cases])


@each_baseline
def test_hearts_at_one_place_are_found_in_images_of_any_shape(baseline):
    fit(baseline, [ring(seed=seed) for seed in range(4)])
    image, label = ring((9, 60, 72), seed=9)

    prediction = baseline.predict(image)

    assert prediction.dtype == np.uint8
    assert prediction.shape == label.shape
    assert min(dice(prediction, label, value) for value in (1, 2)) > 0.9


def test_the_prediction_of_the_atlas_does_not_depend_on_intensities():
    atlas = fit(MeanShapeAtlas(), [ring(centre=(0.4, 0.5)), ring(centre=(0.6, 0.5))])
    image, _ = ring()

    np.testing.assert_array_equal(atlas.predict(image), atlas.predict(-image))


def test_the_threshold_follows_hearts_at_different_places_and_the_atlas_does_not():
    places = [(y, x) for y in (0.35, 0.5, 0.65) for x in (0.35, 0.5, 0.65)]
    cases = [ring(centre=place, radius=0.15, seed=seed) for seed, place in enumerate(places)]
    image, label = ring(centre=(0.35, 0.65), radius=0.15, seed=99)

    assert dice(fit(MeanShapeAtlas(), cases).predict(image), label) < 0.5
    assert dice(fit(IntensityThreshold(), cases).predict(image), label) > 0.9


def test_the_grid_search_of_the_atlas_chooses_the_threshold_with_the_best_dice():
    cases = [ring(centre=(0.5, x), seed=seed) for seed, x in enumerate((0.42, 0.5, 0.58))]
    single = [fit(MeanShapeAtlas(thresholds=[threshold]), cases).training_dice for threshold in (0.01, 0.3, 0.9)]
    searched = fit(MeanShapeAtlas(thresholds=[0.01, 0.3, 0.9]), cases)

    assert searched.training_dice == max(single)
    assert searched.chosen["threshold"] == (0.01, 0.3, 0.9)[int(np.argmax(single))]


def test_the_threshold_keeps_only_the_largest_component():
    image, label = ring(radius=0.15)
    threshold = fit(IntensityThreshold(regions=[-1.0]), [(image, label)])
    speckled = image.copy()
    speckled[:, 1:4, 1:4] = 2

    prediction = threshold.predict(speckled)

    assert not prediction[:, 1:4, 1:4].any()
    assert dice(prediction, label) > 0.9


@each_baseline
def test_images_may_have_a_channel_axis_and_cases_may_lack_a_structure(baseline):
    (image, label), (second, lacking) = ring(), ring(seed=1)
    lacking[lacking == 2] = 0

    without = baseline.fit([image, second], [label, lacking]).predict(image)
    with_channel = baseline.fit([image[None], second[None]], [label, lacking]).predict(image[None])

    np.testing.assert_array_equal(with_channel, without)
    assert without.any()


EMPTY = np.zeros((2, 4, 4), np.uint8)


@each_baseline
@pytest.mark.parametrize(
    ("images", "labels", "key"),
    [([], [], "images"), ([EMPTY], [], "images"), ([EMPTY], [EMPTY[1:]], "images"), ([EMPTY], [EMPTY], "labels")],
)
def test_missing_cases_other_shapes_and_empty_labels_are_refused(baseline, images, labels, key, refused):
    with refused(key):
        baseline.fit(images, labels)
