"""Effect of each style, measured on an image of known tissues."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import spearmanr

from uumamba.data.vendor_styles import STYLES, shift_style

SPACING_MM = (8.0, 1.5, 1.25)
SHAPE = (3, 96, 112)
CASE = "patient001_frame01"


def body():
    """Make fat, muscle, lung, myocardium and blood in noisy air."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, length) for length in SHAPE), indexing="ij")
    image = np.full(SHAPE, 8.0)
    for radius, at, value in (
        *((0.90, (0.0, 0.0), 950.0), (0.80, (0.0, 0.0), 250.0)),
        *((0.30, (-0.4, 0.0), 70.0), (0.30, (0.2, 0.1), 260.0), (0.20, (0.2, 0.1), 750.0)),
    ):
        image[(y - at[0]) ** 2 + (x - at[1]) ** 2 + 0.01 * z**2 < radius**2] = value
    smooth = ndimage.gaussian_filter(image, (0, 0.8, 0.8))
    noise = np.random.default_rng(0).normal(scale=6, size=(2, *SHAPE))
    return np.hypot(smooth + noise[0], noise[1])


def styled(name, image=None, **changed):
    arguments = {"case_id": CASE, "spacing_mm": SPACING_MM, **changed}
    return shift_style(body() if image is None else image, name, **arguments)


def normalise(image):
    """Normalise from the smallest value (0) to the 99.5th percentile (1)."""
    return (image - image.min()) / (np.percentile(image, 99.5) - image.min())


def share_of_power(planes, low, high, *, axis):
    """Compute the share of power at frequencies (1/mm) in a range."""
    power = np.abs(np.fft.fft2(planes)) ** 2
    frequency = np.abs(np.fft.fftfreq(planes.shape[axis], SPACING_MM[axis]))
    chosen = np.moveaxis(power, axis, 0)[(low <= frequency) & (frequency < high)]
    return chosen.sum() / power.sum()


@pytest.mark.parametrize("name", STYLES)
def test_equal_arguments_give_equal_bytes_and_strength_0_the_image(name):
    image = body().astype(np.float32)
    image.flags.writeable = False
    assert styled(name, image).tobytes() == styled(name, image).tobytes()
    assert styled(name, image, strength=0.0).tobytes() == image.tobytes()
    for constant in (np.zeros((2, 3, 4)), np.full((2, 3, 4), 7, np.int16)):
        np.testing.assert_array_equal(styled(name, constant), constant)
    if name != "dark_blood":  # has no random numbers
        assert not np.array_equal(styled(name, image), styled(name, image, case_id="patient001_frame12"))
        assert not np.array_equal(styled(name, image), styled(name, image, seed=1))


@pytest.mark.parametrize("name", STYLES)
def test_the_change_grows_with_the_strength_from_almost_0(name):
    original = body()
    changes = [np.sqrt(np.mean((styled(name, strength=s) - original) ** 2)) for s in (0.01, 0.4, 1.0)]
    assert changes == sorted(changes)
    # A slightly coarser matrix already removes the outermost frequencies, which have little power.
    assert changes[0] < 0.05 * changes[-1] or (name == "coarse_matrix" and changes[0] < 0.2 * changes[-1])
    assert changes[-1] > 0.02 * original.max()


@pytest.mark.parametrize("name", STYLES)
def test_a_style_follows_the_scale_of_intensities_and_the_order_of_axes(name):
    image = body()
    np.testing.assert_allclose(styled(name, 4 * image - 100), 4 * styled(name, image).astype(float) - 100, atol=0.05)
    moved = styled(name, np.moveaxis(image, 0, 2), spacing_mm=(*SPACING_MM[1:], SPACING_MM[0]))
    np.testing.assert_array_equal(np.moveaxis(moved, 2, 0), styled(name, image))


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 5, 1), (2, 1, 1)])
def test_the_smallest_images_have_finite_results(name, shape):
    assert np.isfinite(styled(name, np.arange(np.prod(shape), dtype=float).reshape(shape))).all()


def test_the_coil_multiplies_by_a_smooth_field_with_its_maximum_at_the_border():
    images = [normalise(body()) + 0.5, normalise(body()[:, ::-1]) + 0.5, np.ones(SHAPE)]
    for image in images:
        image[0, 0, 0], image[-1] = 0, np.percentile(image, 99.5)  # the same scale for all images
    fields = [np.log(styled("surface_coil", image)[:2, 1:] / image[:2, 1:]) for image in images]
    for field in fields:
        np.testing.assert_allclose(field, fields[2], atol=1e-4)
    assert np.ptp(field) > np.log(1.5)
    # Neighbours differ by at most the largest gradient of -1.5 log(1 + d^2 / R^2), which is 1.5 / R at d = R.
    for axis in (1, 2):
        assert np.abs(np.diff(field, axis=axis)).max() <= 1.5 / 130 * SPACING_MM[axis] * 1.001
    position = np.array(np.unravel_index(field[1].argmax(), field[1].shape)) + np.array([1, 0])
    half = np.array(SHAPE[1:]) / 2
    assert np.hypot(*((position - half + 0.5) / half)) > 0.9  # on the ellipse through the edges' middles


def test_lifted_shadows_is_a_power_that_keeps_the_order_of_intensities():
    image = body()
    before, after = normalise(image), normalise(styled("lifted_shadows", image))
    inner = (before > 0.02) & (before < 0.9)
    powers = np.log(after[inner]) / np.log(before[inner])
    assert 0.4 <= powers.min() <= powers.max() <= min(0.55, powers.min() + 1e-3)
    assert spearmanr(before.ravel(), after.ravel()).statistic > 0.9999


def test_dark_blood_reverses_the_order_of_tissues_and_keeps_air_dark():
    image = body()
    before, after = normalise(image), styled("dark_blood", image) / image.max()
    clean = ndimage.gaussian_filter(before, (0, 1, 1))
    flat = ndimage.maximum_filter(clean, (1, 9, 9)) - ndimage.minimum_filter(clean, (1, 9, 9)) < 0.05
    mean = {
        name: after[flat & (abs(clean - value) < 0.02)].mean()
        for name, value in (("air", 0.008), ("muscle", 0.26), ("blood", 0.78))
    }
    assert mean["air"] < 0.35 * mean["muscle"]
    assert mean["muscle"] > 1.5 * mean["blood"]
    tissue = flat & (clean > 0.2)
    assert spearmanr(before[tissue], after[tissue]).statistic < -0.95


@pytest.mark.parametrize("axis", [1, 2])
def test_a_coarse_matrix_has_no_frequency_above_its_resolution(axis):
    shifted, image = styled("coarse_matrix").astype(float), body()
    # Between 3.5 and 4 mm: above 1 / (2 * 3.5 mm) only the magnitude of the ringing contributes.
    beyond, within = (0.5 / 3.5, np.inf), (0.0, 0.5 / 4.0)
    assert share_of_power(shifted, *beyond, axis=axis) < 0.1 * share_of_power(image, *beyond, axis=axis)
    assert share_of_power(shifted, *within, axis=axis) > share_of_power(image, *within, axis=axis)
    kept = np.fft.fft2(image)[:, :8, :8]  # up to 7 / (96 * 1.5 mm) = 0.05 per mm
    np.testing.assert_allclose(np.fft.fft2(shifted)[:, :8, :8], kept, atol=0.01 * np.abs(kept).max())
    coarser = styled("coarse_matrix", image, spacing_mm=(8.0, 5.0, 5.0))
    np.testing.assert_allclose(coarser, image, atol=1e-3)


def test_a_fast_scan_has_correlated_noise_twice_as_strong_in_the_middle():
    shape, spacing_mm = (8, 128, 128), (8.0, 2.0, 2.0)
    image = np.ones(shape)
    image[:, 0, 0] = 0
    noise = (styled("fast_scan", image, spacing_mm=spacing_mm) - image)[:, 1:, 1:]
    middle, border = noise[:, 55:72, 55:72].std(), np.concatenate([noise[:, :8].ravel(), noise[:, -8:].ravel()]).std()
    assert 0.025 * 0.9 < border < 0.035 * 1.2
    assert middle == pytest.approx(2 * border, rel=0.2)
    power = (np.abs(np.fft.fft2(noise)) ** 2).mean(axis=0)
    radius = np.hypot(*np.meshgrid(*[np.fft.fftfreq(127, 2.0)] * 2))  # per mm
    low, high = power[(radius > 0.02) & (radius < 0.04)].mean(), power[(radius > 0.22) & (radius < 0.25)].mean()
    # The amplitude is 1 / (1 + (4 mm * f)^2): at 0.03 and 0.235 per mm the power differs 3.4 times.
    expected = ((1 + (4 * 0.235) ** 2) / (1 + (4 * 0.03) ** 2)) ** 2
    assert low / high == pytest.approx(expected, rel=0.2)
    assert styled("fast_scan", np.pad(np.ones((4, 16, 16)), 8)).min() >= 0  # a magnitude


@pytest.mark.parametrize(
    ("shape", "name", "strength", "key", "got"),
    [
        ((1, 3, 3), "siemens", 1.0, "style", "siemens"),
        ((1, 3, 3), "fast_scan", 1.5, "strength", 1.5),
        ((1, 3, 3), "fast_scan", float("nan"), "strength", None),
        ((3, 3), "fast_scan", 1.0, "image", (3, 3)),
    ],
)
def test_an_invalid_argument_is_refused(refused, shape, name, strength, key, got):
    with refused(key) as error:
        styled(name, np.ones(shape), strength=strength)
    assert got in (None, error.value.got)
