"""End diastole and end systole in curves made by hand and by formula."""

import numpy as np
import pytest

from tests.pipelines.run_files import Refused
from uumamba.evaluation.volume_curve import find_phases


def make_cycle(frames: int = 25, *, edv_ml: float = 150.0, esv_ml: float = 60.0, end: float = 1.0) -> np.ndarray:
    """Volumes of a cycle that contracts in its first 35 %, fills until 70 %, and rests until atrial contraction.

    ``end`` is the recorded share of the cycle.
    """
    time = np.arange(frames) / frames * end
    contracted = np.interp(time, [0.0, 0.05, 0.35, 0.55, 0.7, 0.9, 1.0], [0.0, 0.05, 1.0, 0.45, 0.25, 0.2, 0.0])
    return edv_ml - (edv_ml - esv_ml) * contracted


def distance(found: int, expected: int, frames: int) -> int:
    """Frames from one to the other in a cycle."""
    return min((found - expected) % frames, (expected - found) % frames)


@pytest.mark.parametrize("frames", [8, 12, 20, 25, 30, 50])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
def test_both_phases_are_found_within_one_frame_wherever_the_cine_begins(frames: int, share: float) -> None:
    shift = round(share * frames)  # at 0.2 the first frame is in mid-systole
    volumes = make_cycle(frames)
    found = find_phases(np.roll(volumes, -shift).tolist())
    assert found.doubts == ()
    assert distance(found.phases["ED"] + shift, int(volumes.argmax()), frames) <= 1
    assert distance(found.phases["ES"] + shift, int(volumes.argmin()), frames) <= 1


@pytest.mark.parametrize("seed", range(20))
def test_noise_of_three_percent_moves_end_systole_by_two_of_25_frames_at_most(seed: int) -> None:
    volumes = make_cycle()
    noisy = volumes + np.random.default_rng(seed).normal(scale=4.5, size=25)
    found = find_phases(noisy.tolist())
    assert found.doubts == ()
    assert distance(found.phases["ES"], int(volumes.argmin()), 25) <= 2
    assert volumes[found.phases["ED"]] > 140


@pytest.mark.parametrize("place", range(25))
@pytest.mark.parametrize("wrong_ml", [0.0, 320.0])
def test_a_frame_with_a_jump_is_neither_phase(place: int, wrong_ml: float) -> None:
    volumes = make_cycle()
    volumes[place] = wrong_ml
    found = find_phases(volumes.tolist())
    assert (found.outliers, found.doubts) == ((place,), ())
    assert place not in found.phases.values()
    assert distance(found.phases["ED"], 0, 25) <= 1
    assert distance(found.phases["ES"], int(make_cycle().argmin()), 25) <= 1


def test_an_empty_frame_of_a_weak_ventricle_is_no_end_systole() -> None:
    volumes = make_cycle(edv_ml=300.0, esv_ml=255.0)
    volumes[18] = 0.0
    found = find_phases(volumes.tolist())
    assert found.outliers == (18,)
    assert distance(found.phases["ES"], int(make_cycle().argmin()), 25) <= 1


def test_the_smoothed_curve_of_a_hand_made_cycle_decides() -> None:
    # s of frames 4 to 6 is (86 + 134 + 60) / 4 = 70, (67 + 120 + 53) / 4 = 60 and (60 + 106 + 76) / 4 = 60.5.
    found = find_phases([95, 100, 93, 86, 67, 60, 53, 76, 83, 88])
    assert found.phases == {"ED": 1, "ES": 5}


def test_a_whole_cycle_is_smoothed_across_its_ends() -> None:
    # s of frame 0 is (92 + 2 * 98 + 90) / 4 = 94.5, below (96 + 2 * 97 + 92) / 4 = 95.5 of frame 8.
    assert find_phases([98, 90, 75, 60, 58, 70, 85, 96, 97, 92]).phases == {"ED": 8, "ES": 4}


def test_the_measured_curve_of_a_triggered_cine_of_acdc_has_the_phases_of_its_info_file() -> None:
    # LV of patient090 by the shipped model: 60 % of a cycle, with ED = 4 and ES = 11 in Info.cfg.
    found = find_phases([75.5, 76.4, 77.8, 75.0, 68.0, 61.6, 54.9, 47.1, 41.6, 42.8, 41.5, 51.3])
    assert abs(found.phases["ED"] + 1 - 4) <= 1
    assert abs(found.phases["ES"] + 1 - 11) <= 1


@pytest.mark.parametrize("end", [0.5, 0.6, 0.8, 0.9])
def test_a_triggered_cine_that_misses_late_diastole_has_both_phases(end: float) -> None:
    volumes = make_cycle(end=end)
    found = find_phases(volumes.tolist())
    assert found.doubts == ()
    assert distance(found.phases["ED"], 0, 25) <= 1
    assert distance(found.phases["ES"], int(volumes.argmin()), 25) <= 1


@pytest.mark.parametrize(
    ("volumes", "doubt"),
    [
        ([120.0] * 20, "changes by 0 %"),
        ((100 + np.random.default_rng(0).normal(scale=1.0, size=25)).tolist(), "changes by"),
        ((100 + np.random.default_rng(0).normal(scale=15.0, size=30)).tolist(), "minima"),
        (make_cycle(end=0.35).tolist(), "its ends differ by"),
        (np.roll(make_cycle(40), -14)[:24].tolist(), "its ends differ by"),
        ([*make_cycle(20), *make_cycle(20)], "2 minima"),
        ([150.0, 100.0, 60.0], "3 frames"),
        ([150.0, 100.0, 60.0, 110.0], "4 frames"),
        ([0.0] * 12, "no frame has a volume"),
        ([*make_cycle(12, esv_ml=0.0)[:4], 0.0, 0.0, 0.0, *make_cycle(12, esv_ml=0.0)[6:]], "changes by 100 %"),
        (np.where(np.arange(10) % 3 == 2, 0.0, make_cycle(10, edv_ml=300.0, esv_ml=255.0)).tolist(), "outliers"),
    ],
    ids=[
        "constant",
        "flat",
        "noise",
        "systole",
        "diastole",
        "two beats",
        "three",
        "four",
        "empty",
        "vanishing",
        "jumps",
    ],
)
def test_a_curve_that_is_no_heart_cycle_has_no_phases(volumes: list[float], doubt: str) -> None:
    found = find_phases(volumes)
    assert found.phases == {}
    assert any(doubt in each for each in found.doubts), found.doubts


@pytest.mark.parametrize("volumes", [[], [1.0, float("nan"), 2.0], [1.0, -1.0, 2.0]])
def test_volumes_that_are_none_are_refused(volumes: list[float], refused: Refused) -> None:
    with refused("volumes_ml", got=volumes):
        find_phases(volumes)


def test_two_frames_are_the_two_phases_in_either_order_if_the_change_is_plausible() -> None:
    assert find_phases([194.0, 134.0]).phases == {"ED": 0, "ES": 1}
    assert find_phases([134.0, 194.0]).phases == {"ED": 1, "ES": 0}
    for volumes in ([150.0, 149.0], [150.0, 1.0], [0.0, 80.0]):
        found = find_phases(volumes)
        assert found.phases == {}
        assert "the volume changes by" in found.doubts[0]
    assert find_phases([194.0, 160.0, 134.0]).phases == {}
