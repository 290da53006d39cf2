from itertools import combinations

import numpy as np
import pytest

from data_prep.aorta import STRUCTURES
from data_prep.phantoms.aorta.aorta_tree import draw_aorta_tree, make_generator
from data_prep.phantoms.aorta.aorta_vessels import GAP_MM, Vessel, has_gaps
from tests.data_prep.phantoms.aorta.aorta_truth import compute_aorta_truth

SUBJECTS = range(1, 13)


@pytest.fixture(scope="module")
def truths():
    return [compute_aorta_truth(number) for number in SUBJECTS]


@pytest.fixture(scope="module")
def trees():
    return [draw_aorta_tree(make_generator(number, 0)) for number in SUBJECTS]


def tube(name, points, radius, parent=""):
    points = np.array(points, dtype=np.float64)
    return Vessel(name, parent, points, np.full(len(points), float(radius)), (name,), (0.0,))


def test_segments_have_the_parents_of_the_arteries(truths):
    zones = [f"Zone{number}" for number in range(10)]
    expected = dict(zip(zones, ["", *zones], strict=False))
    expected |= {"Innominate": "Zone0", "LCC": "Zone1", "LSA": "Zone2", "Celiac": "Zone6", "SMA": "Zone7"}
    for side in "RL":
        expected |= {f"Renal{side}": "Zone8", f"Zone10{side}": "Zone9"}
        expected |= {f"Zone11{side}": f"Zone10{side}", f"InternalIliac{side}": f"Zone10{side}"}
    for truth in truths:
        assert list(truth.segments) == list(STRUCTURES)
        assert {name: segment.parent for name, segment in truth.segments.items()} == expected


def test_segments_start_on_their_parent_with_a_point_per_millimetre_and_plausible_sizes(truths):
    for segments, name, segment in ((each.segments, *item) for each in truths for item in each.segments.items()):
        steps = np.linalg.norm(np.diff(segment.points_mm, axis=0), axis=1)
        assert len(segment.diameters_mm) == len(segment.points_mm)
        assert 0.8 < steps.min() <= steps.max() < 1.15
        # A branch starts within a radius of a border between zones, on either side.
        on_parent = segments[segment.parent or name].points_mm
        assert np.linalg.norm(on_parent - segment.points_mm[0], axis=1).min() < 1.2, name
        if not name.startswith("Zone"):
            assert 7 < segment.diameters_mm.min() <= segment.diameters_mm.max() < 16, name
            assert 30 < segment.length_mm < 75, name
    # Zone 3 is two centimetres for any body size, cut at centreline points.
    assert [truth.segments["Zone3"].length_mm for truth in truths] == pytest.approx([20.0] * len(truths), abs=1.2)


def test_the_arch_branches_leave_in_order_and_a_shared_ostium_is_closer(trees):
    spacings = {True: [], False: []}
    for tree in trees:
        aorta = tree.vessel("Aorta").points_mm
        at = [
            int(np.argmin(np.linalg.norm(aorta - tree.vessel(name).points_mm[0], axis=1)))
            for name in ("Innominate", "LCC", "LSA")
        ]
        assert at == sorted(at)
        spacings[tree.bovine].append((at[1] - at[0]) * tree.pose.scale)

    assert max(spacings[True]) < 13.5 < min(spacings[False])


def test_sides_are_the_patients_in_ras_coordinates(truths):
    for truth in truths:
        middle = {name: segment.points_mm.mean(axis=0) for name, segment in truth.segments.items()}
        # RAS+ as in nibabel: x grows from the patient's left to right.
        for pair in ("Renal", "Zone10", "InternalIliac", "Zone11"):
            assert middle[f"{pair}R"][0] > middle[f"{pair}L"][0]
        assert middle["Innominate"][0] > middle["LCC"][0] > middle["LSA"][0]
        assert np.all(middle["Zone0"][:2] > middle["Zone4"][:2])  # the arch turns to the left and to the back
        assert middle["Celiac"][2] > middle["SMA"][2] > middle["Zone9"][2] > middle["Zone11L"][2]


def test_vessels_keep_their_gap_behind_a_bifurcation(trees):
    for earlier, later in (pair for tree in trees for pair in combinations(tree.vessels, 2)):
        between = np.linalg.norm(later.points_mm[:, None] - earlier.points_mm[None], axis=2)
        gaps = (between - later.radii_mm[:, None] - earlier.radii_mm[None]).min(axis=1)
        parted = np.flatnonzero(gaps > GAP_MM)
        assert parted.size, (earlier.name, later.name)
        # The check uses every second point.
        assert gaps[parted[0] :].min() > GAP_MM - 0.5, (earlier.name, later.name)


def test_a_vessel_that_returns_to_another_is_refused():
    way = np.arange(0, 60.0)
    straight = tube("A", np.stack([way, 0 * way, 0 * way], axis=1), 3)
    leaving = 20 + 0 * way, way
    returning = 20 + way / 2, 30 * np.sin(way * np.pi / 59)
    parallel = way, 0 * way + 7

    for (x, y), is_apart in ((leaving, True), (returning, False), (parallel, False)):
        assert has_gaps([straight, tube("B", np.stack([x, y, 0 * way], axis=1), 2, "A")]) == is_apart


def test_subjects_differ_in_length_and_anatomy(truths):
    assert len({round(truth.length_mm, 3) for truth in truths}) == len(truths)
    assert {truth.dissected for truth in truths} == {truth.bovine for truth in truths} == {True, False}
