from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from data_prep.phantoms.coronary.coronary_case import draw_anatomy
from data_prep.phantoms.coronary.coronary_growth import GAP_MM, STEP_MM, Branch
from data_prep.phantoms.coronary.coronary_phantom import coronary_truth, write_coronary_phantom
from data_prep.phantoms.coronary.coronary_scanner import WIDTHS
from data_prep.phantoms.coronary.coronary_tree import ends_and_branch_points
from uumamba.metrics import betti_numbers, centreline_length_mm

NUMBERS = range(1, 7)


@pytest.fixture(scope="module")
def drawn():
    """Label and truth of a few cases."""
    return [(draw_anatomy(number, 0).label, coronary_truth(number)) for number in NUMBERS]


def spacing_of(truth):
    return np.linalg.norm(truth.affine[:3, :3], axis=0)


def to_voxels(points_mm, affine):
    return nib.affines.apply_affine(np.linalg.inv(affine), points_mm)


def inner(branch):
    """Points clear of the branch's ends, where other vessels or the aorta widen or cut it."""
    reach = round(1.5 * branch.diameter_mm.max() / STEP_MM)
    return slice(reach, len(branch.centreline_mm) - reach)


def clear_of_others(truth, branch):
    """Whether each point of a branch is farther from all others than the walls and the rounding between them reach."""
    others = [other for other in truth.branches if other.name != branch.name]
    distances = np.stack([cKDTree(other.centreline_mm).query(branch.centreline_mm)[0] for other in others])
    return distances.min(axis=0) > 1.3 * max(b.diameter_mm.max() for b in truth.branches)


def test_the_label_has_the_known_topology(drawn):
    for label, truth in drawn:
        assert betti_numbers(label == 1) == truth.betti
        assert truth.betti[0] == sum(branch.parent is None for branch in truth.branches)


@pytest.mark.slow  # labels of forty more cases
def test_the_known_topology_holds_for_other_seeds():
    parts = set()
    for number in range(1, 41):
        label, truth = draw_anatomy(number, 9).label, coronary_truth(number, seed=9)
        assert betti_numbers(label == 1) == truth.betti, number
        parts.add(truth.betti[0])

    # A conus branch of its own beside left and right arteries.
    assert parts == {2, 3}


def test_the_labels_centreline_is_as_long_as_the_known_one(drawn):
    for label, truth in drawn:
        parents = {branch.parent for branch in truth.branches}
        # Free ends are rounded off with their radius; the left main ends where its branches start.
        caps_mm = sum(b.diameter_mm[-1] / 2 for b in truth.branches if not (b.name == "LM" and b.name in parents))
        measured_mm = centreline_length_mm(label == 1, spacing_mm=tuple(spacing_of(truth)))
        assert measured_mm == pytest.approx(truth.length_mm + caps_mm, rel=0.05)


def test_centrelines_run_inside_the_label_where_the_affine_says(drawn):
    for label, truth in drawn:
        for branch in truth.branches:
            start = round(1.0 / STEP_MM) if branch.parent is None else 0
            at = np.rint(to_voxels(branch.centreline_mm[start:], truth.affine)).astype(int)
            assert label[tuple(at.T)].all(), (truth.number, branch.name)


def test_diameters_measured_in_the_label_are_within_half_a_voxel_of_the_known_ones(drawn):
    for label, truth in drawn:
        spacing = spacing_of(truth)
        to_background = ndimage.distance_transform_edt(label, sampling=spacing)
        # The voxel nearest to a centreline is up to half a diagonal away from it.
        widest = ndimage.maximum_filter(to_background, 3)
        differences = []
        for branch in truth.branches:
            part = inner(branch)
            clear = clear_of_others(truth, branch)[part]
            at = np.rint(to_voxels(branch.centreline_mm[part], truth.affine)).astype(int)[clear]
            # Of the background's voxels all around, the nearest one lies just behind the wall.
            measured = 2 * widest[tuple(at.T)]
            differences.append((measured - branch.diameter_mm[part][clear]) / spacing.mean())
        difference = np.concatenate(differences)
        assert len(difference) > 200
        assert abs(np.median(difference)) < 0.5, truth.number
        assert np.quantile(np.abs(difference), 0.9) < 1.0, truth.number


def test_vessels_are_3_to_8_voxels_wide_and_taper(drawn):
    for _, truth in drawn:
        spacing = spacing_of(truth)
        for branch in truth.branches:
            assert branch.diameter_mm.min() >= 3 * spacing.max()
            assert branch.diameter_mm.max() <= 8 * spacing.min()
        named = {branch.name: branch for branch in truth.branches}
        for name in ("LAD", "RCA"):
            assert named[name].diameter_mm[-1] < 0.9 * named[name].diameter_mm[0]
    assert WIDTHS[0] >= 3
    assert WIDTHS[1] <= 8


def test_points_of_a_centreline_are_equally_spaced_and_start_on_the_parent(drawn):
    for _, truth in drawn:
        named = {branch.name: branch for branch in truth.branches}
        for branch in truth.branches:
            steps = np.linalg.norm(np.diff(branch.centreline_mm, axis=0), axis=1)
            np.testing.assert_allclose(steps, STEP_MM, rtol=0.08)
            if branch.parent is not None:
                start = named[branch.parent].centreline_mm[branch.parent_index]
                assert np.linalg.norm(branch.centreline_mm[0] - start) < 0.05


def test_vessels_that_do_not_meet_keep_fat_between_them(drawn):
    for _, truth in drawn:
        for one in truth.branches:
            for other in truth.branches:
                if one.name < other.name and one.name != other.parent and other.name != one.parent:
                    if one.parent is not None and (one.parent, one.parent_index) == (other.parent, other.parent_index):
                        continue
                    distance, nearest = cKDTree(other.centreline_mm).query(one.centreline_mm)
                    gap = distance - other.diameter_mm[nearest] / 2 - one.diameter_mm / 2
                    assert gap.min() > GAP_MM - 0.1, (truth.number, one.name, other.name)


def test_trees_differ_in_dominance_branches_and_lesions():
    truths = [coronary_truth(number) for number in range(1, 13)]
    parents = {branch.parent for truth in truths for branch in truth.branches if branch.name == "PDA"}

    assert parents == {"RCA", "LCx"}
    assert len({tuple(branch.name for branch in truth.branches) for truth in truths}) > 6
    assert max(truth.length_mm for truth in truths) > 1.3 * min(truth.length_mm for truth in truths)
    assert 0 < sum(bool(truth.calcified) for truth in truths) < 12
    assert 0 < sum(bool(truth.stented) for truth in truths) < 12
    assert 0 < sum(truth.motion_mm > 0 for truth in truths) < 12


def test_ends_and_branch_points_of_a_small_tree_are_counted():
    line = np.zeros((9, 3))
    trunk = Branch("LM", None, 0, line, np.ones(9))
    fork = [replace(trunk, name=name, parent="LM", parent_index=8) for name in ("LAD", "LCx")]
    side = replace(trunk, name="D1", parent="LAD", parent_index=4)

    assert ends_and_branch_points([trunk]) == (2, 0)
    # Both of the fork's arms start where the trunk ends.
    assert ends_and_branch_points([trunk, *fork]) == (3, 1)
    assert ends_and_branch_points([trunk, *fork, side]) == (4, 2)


def test_ends_and_branch_points_obey_the_equation_of_a_forest(drawn):
    for _, truth in drawn:
        arms = [(branch.parent, branch.parent_index) for branch in truth.branches if branch.parent is not None]
        sizes = {branch.name: len(branch.centreline_mm) for branch in truth.branches}
        degrees = [arms.count(arm) + (1 if arm[1] == sizes[arm[0]] - 1 else 2) for arm in set(arms)]
        # In a forest the ends are twice the parts, and one more for each arm beyond two at a branch point.
        assert truth.free_ends == 2 * truth.betti[0] + sum(degree - 2 for degree in degrees)
        assert truth.branch_points == len(degrees)


def test_the_truth_is_that_of_the_files(drawn, tmp_path):
    raw = write_coronary_phantom(tmp_path, cases=1)
    image, label = (nib.load(raw / "1-200" / f"1.{kind}.nii.gz") for kind in ("img", "label"))
    known_label, truth = drawn[0]

    np.testing.assert_allclose(image.affine, truth.affine, rtol=0, atol=1e-3)
    assert image.shape == truth.shape
    np.testing.assert_array_equal(np.asarray(label.dataobj), known_label)
