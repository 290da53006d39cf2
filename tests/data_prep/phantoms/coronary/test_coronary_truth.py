from itertools import combinations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from data_prep.phantoms.coronary.coronary_case import draw_anatomy
from data_prep.phantoms.coronary.coronary_growth import GAP_MM, STEP_MM
from tests.data_prep.phantoms.coronary.coronary_truth import compute_coronary_truth
from uumamba.metrics import betti_numbers, centreline_length_mm


@pytest.fixture(scope="module")
def drawn():
    """Draw label and ground truth of four cases."""
    return [(draw_anatomy(number, 0).label, compute_coronary_truth(number)) for number in range(1, 5)]


def measure_spacing(truth):
    return np.linalg.norm(truth.affine[:3, :3], axis=0)


def find_voxels(points_mm, truth):
    return tuple(np.rint(nib.affines.apply_affine(np.linalg.inv(truth.affine), points_mm)).astype(int).T)


def test_the_label_has_the_known_topology_and_length(drawn):
    for label, truth in drawn:
        assert betti_numbers(label == 1) == truth.betti
        assert truth.betti == (sum(branch.parent is None for branch in truth.branches), 0, 0)
        parents = {branch.parent for branch in truth.branches}
        # Free ends are rounded off with their radius; the left main ends where its branches start.
        caps_mm = sum(b.diameter_mm[-1] / 2 for b in truth.branches if not (b.name == "LM" and b.name in parents))
        measured_mm = centreline_length_mm(label == 1, spacing_mm=tuple(measure_spacing(truth)))
        assert measured_mm == pytest.approx(truth.length_mm + caps_mm, rel=0.05)


@pytest.mark.slow  # labels of twelve more cases
def test_the_known_topology_holds_for_other_seeds():
    parts = set()
    for number in range(1, 13):
        label, truth = draw_anatomy(number, 9).label, compute_coronary_truth(number, seed=9)
        assert betti_numbers(label == 1) == truth.betti, number
        parts.add(truth.betti[0])

    # The third part is a conus branch with its own ostium.
    assert parts == {2, 3}


def test_diameters_measured_in_the_label_are_within_half_a_voxel_of_the_known_ones(drawn):
    for label, truth in drawn:
        spacing = measure_spacing(truth)
        to_background = ndimage.distance_transform_edt(label, sampling=spacing)
        # The voxel nearest to a centreline is up to half a diagonal away from it.
        widest = ndimage.maximum_filter(to_background, 3)
        reach_mm = 1.3 * max(branch.diameter_mm.max() for branch in truth.branches)
        differences = []
        for branch in truth.branches:
            start = round(1.0 / STEP_MM) if branch.parent is None else 0
            assert label[find_voxels(branch.centreline_mm[start:], truth)].all(), branch.name
            others = np.concatenate([other.centreline_mm for other in truth.branches if other is not branch])
            clear = cKDTree(others).query(branch.centreline_mm)[0] > reach_mm
            ends = round(1.5 * branch.diameter_mm.max() / STEP_MM)
            clear[:ends] = clear[-ends:] = False
            # The nearest background voxel is just behind the wall.
            measured = 2 * widest[find_voxels(branch.centreline_mm[clear], truth)]
            differences.append((measured - branch.diameter_mm[clear]) / spacing.mean())
        difference = np.concatenate(differences)
        assert len(difference) > 200
        assert abs(np.median(difference)) < 0.5
        assert np.quantile(np.abs(difference), 0.9) < 1.0


def test_vessels_are_3_to_8_voxels_wide_taper_and_start_on_their_parent(drawn):
    for _, truth in drawn:
        spacing = measure_spacing(truth)
        named = {branch.name: branch for branch in truth.branches}
        for branch in truth.branches:
            assert 3 * spacing.max() <= branch.diameter_mm.min() <= branch.diameter_mm.max() <= 8 * spacing.min()
            steps = np.linalg.norm(np.diff(branch.centreline_mm, axis=0), axis=1)
            np.testing.assert_allclose(steps, STEP_MM, rtol=0.08)
            if branch.parent is not None:
                start = named[branch.parent].centreline_mm[branch.parent_index]
                assert np.linalg.norm(branch.centreline_mm[0] - start) < 0.05
        for name in ("LAD", "RCA"):
            assert named[name].diameter_mm[-1] < 0.9 * named[name].diameter_mm[0]


def test_vessels_that_do_not_meet_keep_fat_between_them(drawn):
    for _, truth in drawn:
        for one, other in combinations(truth.branches, 2):
            siblings = one.parent is not None and (one.parent, one.parent_index) == (other.parent, other.parent_index)
            if not siblings and one.name != other.parent and other.name != one.parent:
                distance, nearest = cKDTree(other.centreline_mm).query(one.centreline_mm)
                gap_mm = distance - other.diameter_mm[nearest] / 2 - one.diameter_mm / 2
                assert gap_mm.min() > GAP_MM - 0.1, (one.name, other.name)


def test_trees_differ_in_dominance_branches_and_lesions():
    truths = [compute_coronary_truth(number) for number in range(1, 13)]
    parents = {branch.parent for truth in truths for branch in truth.branches if branch.name == "PDA"}

    assert parents == {"RCA", "LCx"}
    assert len({tuple(branch.name for branch in truth.branches) for truth in truths}) > 6
    assert max(truth.length_mm for truth in truths) > 1.3 * min(truth.length_mm for truth in truths)
    for lesions in (
        [bool(getattr(t, kind)) for t in truths] for kind in ("calcified", "stented", "moving", "motion_mm")
    ):
        assert 0 < sum(lesions) < 12


def test_the_ground_truth_describes_the_files(drawn, coronary_raw):
    image, label = (nib.load(coronary_raw / "1-200" / f"1.{kind}.nii.gz") for kind in ("img", "label"))
    known_label, truth = drawn[0]

    np.testing.assert_allclose(image.affine, truth.affine, rtol=0, atol=1e-3)
    assert image.shape == truth.shape
    np.testing.assert_array_equal(np.asarray(label.dataobj), known_label)
