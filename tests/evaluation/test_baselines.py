import numpy as np
import pytest

from uumamba.evaluation.baselines import IntensityThreshold, MeanShapeAtlas


def ring(shape=(6, 48, 48), *, centre=(0.5, 0.5), radius=0.25, seed=0):
    """A bright disc (2) in a ring (1) on a dark ground; sizes are relative, the noise a tenth of the contrast."""
    y, x = ((np.arange(size) + 0.5) / size for size in shape[1:])
    distance = np.hypot(y[:, None] - centre[0], x[None, :] - centre[1])
    plane = np.where(distance < radius, 2, np.where(distance < 1.6 * radius, 1, 0)).astype(np.uint8)
    label = np.repeat(plane[None], shape[0], axis=0)
    image = label + 0.1 * np.random.default_rng(seed).standard_normal(label.shape)
    return image.astype(np.float32), label


def dice(prediction, label, value):
    total = np.sum(prediction == value) + np.sum(label == value)
    return 2 * np.sum((prediction == value) & (label == value)) / total


def fit(baseline, cases):
    return baseline.fit([image for image, _ in cases], [label for _, label in cases])


@pytest.mark.parametrize("baseline", [MeanShapeAtlas(), IntensityThreshold()])
def test_hearts_that_never_move_are_found_in_images_of_any_shape(baseline):
    fit(baseline, [ring(seed=seed) for seed in range(4)])
    image, label = ring((9, 60, 72), seed=9)

    prediction = baseline.predict(image)

    assert prediction.dtype == np.uint8
    assert prediction.shape == label.shape
    assert min(dice(prediction, label, value) for value in (1, 2)) > 0.9


def test_the_atlas_predicts_the_same_whatever_the_image_shows():
    atlas = fit(MeanShapeAtlas(), [ring(centre=(0.4, 0.5)), ring(centre=(0.6, 0.5))])
    image, _ = ring()

    np.testing.assert_array_equal(atlas.predict(image), atlas.predict(-image))


def test_the_atlas_of_moving_hearts_blurs_and_the_threshold_follows_them():
    places = [(y, x) for y in (0.35, 0.5, 0.65) for x in (0.35, 0.5, 0.65)]
    cases = [ring(centre=place, radius=0.15, seed=seed) for seed, place in enumerate(places)]
    atlas, threshold = fit(MeanShapeAtlas(), cases), fit(IntensityThreshold(), cases)
    image, label = ring(centre=(0.35, 0.65), radius=0.15, seed=99)

    assert dice(atlas.predict(image), label, 2) < 0.5
    assert dice(threshold.predict(image), label, 2) > 0.9


def test_the_grid_search_chooses_the_better_threshold():
    cases = [ring(centre=(0.5, x), seed=seed) for seed, x in enumerate((0.42, 0.5, 0.58))]
    single = [fit(MeanShapeAtlas(thresholds=[threshold]), cases).training_dice for threshold in (0.01, 0.3, 0.9)]
    searched = fit(MeanShapeAtlas(thresholds=[0.01, 0.3, 0.9]), cases)

    assert searched.training_dice == max(single)
    assert searched.chosen["threshold"] == (0.01, 0.3, 0.9)[int(np.argmax(single))]


def test_the_threshold_keeps_the_largest_component_only():
    image, label = ring(radius=0.15)
    threshold = fit(IntensityThreshold(regions=[-1.0]), [(image, label)])
    speckled = image.copy()
    speckled[:, 1:4, 1:4] = 2

    prediction = threshold.predict(speckled)

    assert not prediction[:, 1:4, 1:4].any()
    assert dice(prediction, label, 2) > 0.9


@pytest.mark.parametrize("baseline", [MeanShapeAtlas(), IntensityThreshold()])
def test_a_channel_axis_in_front_changes_nothing_and_cases_may_lack_a_structure(baseline):
    (image, label), (second, lacking) = ring(), ring(seed=1)
    lacking[lacking == 2] = 0

    without = baseline.fit([image, second], [label, lacking]).predict(image)
    with_channel = baseline.fit([image[None], second[None]], [label, lacking]).predict(image[None])

    np.testing.assert_array_equal(with_channel, without)
    assert without.any()


EMPTY = np.zeros((2, 4, 4), np.uint8)


@pytest.mark.parametrize("baseline", [MeanShapeAtlas(), IntensityThreshold()])
@pytest.mark.parametrize(
    ("images", "labels", "key"),
    [([], [], "images"), ([EMPTY], [], "images"), ([EMPTY], [EMPTY[1:]], "images"), ([EMPTY], [EMPTY], "labels")],
)
def test_cases_that_do_not_fit_are_refused(baseline, images, labels, key, refused):
    with refused(key):
        baseline.fit(images, labels)
