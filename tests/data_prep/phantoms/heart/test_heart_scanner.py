from dataclasses import replace

import numpy as np
import pytest

from data_prep.phantoms.heart.heart_scanner import Scanner, acquire, draw_mri_protocol
from data_prep.phantoms.heart.heart_shape import compute_end_diastole, compute_end_systole, draw_heart


@pytest.fixture(scope="module")
def heart():
    return draw_heart("NOR", np.random.default_rng(7))


@pytest.fixture(scope="module")
def protocol(heart):
    drawn = draw_mri_protocol(heart, compute_end_diastole(heart).end_mm, np.random.default_rng(7))
    return replace(drawn, stored_type="float32")


def frame(heart, protocol, phase):
    return Scanner(heart, protocol, np.random.default_rng(7)).scan_phase(phase, np.random.default_rng(7))


def test_a_breath_hold_moves_image_and_label_of_its_slice_together(heart, protocol):
    still = replace(
        protocol, breath_hold_mm=np.zeros_like(protocol.breath_hold_mm), noise=0.0, texture=0.0, coil=np.zeros(5)
    )
    moved_mm = np.zeros_like(protocol.breath_hold_mm)
    moved_mm[3] = 2 * protocol.spacing_mm[0], -protocol.spacing_mm[1]
    image, label = frame(heart, still, compute_end_diastole(heart))

    moved_image, moved_label = frame(heart, replace(still, breath_hold_mm=moved_mm), compute_end_diastole(heart))
    changed = np.flatnonzero((moved_label != label).any(axis=(0, 1)))

    stored = label.shape[2] - 1 - 3 if protocol.apex_first else 3
    assert changed.tolist() == [stored]
    rolled = np.roll(label[:, :, stored], (2, -1), axis=(0, 1))
    # Rounding may move a sample on an outline to either side.
    assert np.mean(moved_label[:, :, stored] != rolled) < 1e-3
    inner = np.s_[8:-8, 8:-8]
    difference = np.abs(moved_image[:, :, stored] - np.roll(image[:, :, stored], (2, -1), axis=(0, 1)))[inner]
    assert np.mean(difference > 0.02 * protocol.gain) < 1e-3


def test_the_phases_of_a_patient_share_background_and_differ_in_the_heart(heart, protocol):
    silent = replace(protocol, noise=0.0)
    scanner = Scanner(heart, silent, np.random.default_rng(7))
    phases = compute_end_diastole(heart), compute_end_systole(heart)
    (diastole, label), (systole, _) = (scanner.scan_phase(phase, np.random.default_rng(7)) for phase in phases)

    assert (diastole[label == 3] != systole[label == 3]).any()
    assert np.mean(diastole == systole) > 0.5


def test_voxels_mix_their_tissues_and_blood_is_brighter_than_myocardium(heart, protocol):
    clean = replace(protocol, noise=0.0, texture=0.0, coil=np.zeros(5), blur_pixels=0.0, gain=1000.0)
    image, label = frame(heart, clean, compute_end_diastole(heart))
    pure = np.rint(1000 * protocol.brightness)

    assert min(np.median(image[label == blood]) for blood in (1, 3)) > 1.3 * np.median(image[label == 2])
    in_heart = image[label > 0]
    # 2 x 2 samples in plane and 4 through the slice: shares are sixteenths, so there are more mixtures than tissues.
    assert len(np.unique(in_heart)) > 10 * len(pure)
    assert 0.1 < np.mean(~np.isin(in_heart, pure)) < 0.7


def test_noise_in_air_is_rayleigh(protocol):
    noisy = replace(protocol, noise=0.05, gain=1000.0, coil=np.zeros(5))

    image = acquire(np.zeros((*protocol.shape[:2], 8), np.float32), noisy, np.random.default_rng(7))

    # The magnitude of two channels of standard deviation s has mean s sqrt(pi / 2).
    assert image.mean() == pytest.approx(50 * np.sqrt(np.pi / 2), rel=0.01)


def test_stored_values_are_integers_in_the_range_of_their_type(protocol):
    bright = np.full((*protocol.shape[:2], 2), 5, np.float32)

    for stored_type, limit in (("uint8", 255), ("int16", 32767), ("float32", 32767)):
        image = acquire(bright, replace(protocol, stored_type=stored_type, gain=1e5), np.random.default_rng(7))
        assert image.dtype == stored_type
        assert image.max() == limit
        assert (image == np.rint(image)).all()


def test_protocols_cover_the_heart_from_base_to_apex():
    for seed in range(100):
        rng = np.random.default_rng(seed)
        heart = draw_heart(("DCM", "HCM", "MINF", "NOR", "RV")[seed % 5], rng)
        end_mm = compute_end_diastole(heart).end_mm
        protocol = draw_mri_protocol(heart, end_mm, rng)
        thickness = protocol.spacing_mm[2]
        last_mm = protocol.first_slice_mm + (protocol.shape[2] - 1) * thickness
        assert protocol.first_slice_mm <= 0.3 * thickness
        assert last_mm >= end_mm - 1.001 * thickness, seed
