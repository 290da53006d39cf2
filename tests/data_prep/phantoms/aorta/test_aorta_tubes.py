import numpy as np
import pytest
from scipy import ndimage

from data_prep.aorta import STRUCTURES
from data_prep.phantoms.aorta.aorta_scanner import draw_aorta_grid
from data_prep.phantoms.aorta.aorta_tree import draw_aorta_tree, make_generator
from data_prep.phantoms.aorta.aorta_tubes import OUTSIDE_MM, AortaGrid, compute_depth, join_depths, label_vessels
from data_prep.phantoms.aorta.aorta_vessels import Vessel
from tests.data_prep.phantoms.aorta.aorta_truth import compute_aorta_truth
from uumamba.metrics.centreline import centreline_length_mm
from uumamba.metrics.topology import betti_numbers

GRID = AortaGrid((40, 30, 50), (25.0, 12.0, -20.0))


def rod(radius=6, *, x=0.0, parent="Aorta"):
    z = np.arange(-10.0, 11)
    points = np.stack([x + 0 * z, 0 * z, z], axis=1)
    return Vessel("Tube", parent, points, np.full(len(points), float(radius)), ("Zone0",), (0.0,))


def draw(number):
    """Draw a subject's tree, label and grid, without an image."""
    rng = make_generator(number, 0)
    tree = draw_aorta_tree(rng)
    grid = draw_aorta_grid(tree, rng)
    tubes = [compute_depth(vessel, grid) for vessel in tree.vessels]
    return tree, label_vessels(tree, tubes, join_depths(tubes, grid.shape)), grid


def find_voxels(points_mm, grid):
    """Compute the voxel indices ``(3, n)`` of points."""
    right, front, head = grid.first_mm
    return np.rint([points_mm[:, 2] - head, front - points_mm[:, 1], right - points_mm[:, 0]]).astype(int)


def pieces(label):
    """Count the 26-connected components of each structure."""
    boxes = ndimage.find_objects(label, max_label=23)
    return {
        name: 0 if box is None else ndimage.label(label[box] == value, np.ones((3, 3, 3)))[1]
        for (name, value), box in zip(STRUCTURES.items(), boxes, strict=True)
    }


@pytest.fixture(scope="module")
def subject():
    return (compute_aorta_truth(2), *draw(2)[1:])


def test_axes_boxes_and_coarse_voxels_agree():
    x, y, z = GRID.axes()
    inside = GRID.axes(GRID.bounding_box(np.array([[3.0, 2.0, 1.0]]), 4.0))

    assert (x.shape, y.shape, z.shape) == ((1, 1, 50), (1, 30, 1), (40, 1, 1))
    assert (x[0, 0, 1] - x[0, 0, 0], y[0, 1, 0] - y[0, 0, 0], z[1, 0, 0] - z[0, 0, 0]) == (-1, -1, 1)
    assert [(axis.min(), axis.max()) for axis in inside] == [(-1, 7), (-2, 6), (-3, 5)]
    for fine, coarse in zip((x, y, z), GRID.axes(step=2), strict=True):
        np.testing.assert_allclose(coarse.ravel(), fine.ravel().reshape(-1, 2).mean(axis=1))


def test_depth_in_a_straight_tube_is_radius_minus_distance():
    found = compute_depth(rod(), GRID)
    x, y, z = GRID.axes(found.box)
    inner = np.broadcast_to((z > -8) & (z < 8), found.depth_mm.shape)
    expected = np.maximum(6 - np.sqrt(x * x + y * y), OUTSIDE_MM) + 0 * z

    # Between points 1 mm apart, a surface voxel may be off by 0.02 mm.
    np.testing.assert_allclose(found.depth_mm[inner], expected[inner], atol=0.03)


def test_a_branch_ends_flat_and_the_aorta_ends_round():
    flat, rounded = (compute_depth(rod(parent=parent), GRID) for parent in ("Aorta", ""))
    z = GRID.axes(flat.box)[2].ravel()

    assert z[(flat.depth_mm > 0.01).any(axis=(1, 2))].max() == 9
    assert z[(rounded.depth_mm > 0.01).any(axis=(1, 2))].max() == 15
    # The aorta's root is flat, a branch's start a ball within its parent.
    assert z[(rounded.depth_mm > 0.01).any(axis=(1, 2))].min() == -9
    assert z[(flat.depth_mm > 0.01).any(axis=(1, 2))].min() == -15


def test_joining_fills_narrow_gaps_and_no_wide_ones():
    for gap, filled in ((1.5, True), (3.0, False)):
        left, right = (compute_depth(rod(5, x=side * (5 + gap / 2)), GRID) for side in (-1, 1))
        union = join_depths([left, right], GRID.shape)
        x, y, z = (axis.ravel() for axis in GRID.axes())
        between = union[int(np.argmin(np.abs(z))), int(np.argmin(np.abs(y))), int(np.argmin(np.abs(x)))]
        assert (between > 0) == filled, gap


def test_every_structure_is_one_piece_and_the_union_has_the_known_topology_and_length(subject):
    truth, label, _ = subject

    assert pieces(label) == dict.fromkeys(STRUCTURES, 1)
    assert betti_numbers(label > 0) == truth.betti_numbers
    length_mm = centreline_length_mm(label > 0, spacing_mm=(1, 1, 1))
    assert length_mm == pytest.approx(truth.length_mm, rel=0.08)


def test_diameters_by_distance_transform_agree_with_the_ground_truth(subject):
    truth, label, grid = subject
    for name, segment in truth.segments.items():
        # Clear of the parent's lumen and of the flat end.
        inner = slice(int(0.55 * len(segment.points_mm)), int(0.85 * len(segment.points_mm)) + 1)
        points, radii = segment.points_mm[inner], segment.diameters_mm[inner] / 2
        box = grid.bounding_box(points, radii.max() + 3)
        depth = ndimage.distance_transform_edt(label[box] > 0)
        at = find_voxels(points, grid) - np.array([[side.start] for side in box])
        found = ndimage.maximum_filter(depth, 3)[tuple(at)]
        # Voxel centres are within half a diagonal of the axis and of the surface, which nearly cancels.
        assert abs(np.median(found - radii)) < 0.6, name


@pytest.mark.slow
def test_labels_of_many_subjects_are_connected_trees():
    for number in range(1, 9):  # 2 s each
        label = draw(number)[1]
        assert betti_numbers(label > 0) == (1, 0, 0), number
        assert pieces(label) == dict.fromkeys(STRUCTURES, 1), number
