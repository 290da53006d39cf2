import numpy as np
import pytest
from scipy import ndimage

from data_prep.phantoms.coronary.coronary_chest import draw_coronary_enhancement
from data_prep.phantoms.coronary.coronary_grid import CoronaryGrid, compute_distance, compute_share
from data_prep.phantoms.coronary.coronary_growth import Branch
from data_prep.phantoms.coronary.coronary_heart import Tube, draw_coronary_heart
from data_prep.phantoms.coronary.coronary_lesions import (
    _METAL_HU_MM3,
    _draw_plaque,
    _draw_stent,
    average_motion,
    paint_stent,
)

GRID = CoronaryGrid((40, 44, 36), (0.5, 0.5, 0.6), (-10.0, -11.0, -10.8))


@pytest.fixture(scope="module")
def heart():
    return draw_coronary_heart(np.random.default_rng(7))


@pytest.fixture(scope="module")
def straight():
    """Create a vessel of 30 mm along z, 4 mm wide."""
    points = np.zeros((121, 3))
    points[:, 2] = np.linspace(-15, 15, 121)
    return Branch("LAD", None, 0, points, np.full(121, 4.0))


def test_locating_a_point_inverts_placing_it(heart):
    places = np.stack([np.linspace(-170, 170, 9), np.linspace(20, 160, 9), np.linspace(0.5, 1.1, 9)], axis=1)

    np.testing.assert_allclose(heart.locate(heart.place(places)), places, atol=1e-9)


def test_ostia_are_on_the_aortas_wall(heart):
    for degrees in (-120, 0, 60):
        distance = np.linalg.norm(heart.aorta.centreline_mm - heart.ostium(degrees, 0.75), axis=1)
        assert distance.min() == pytest.approx(heart.aorta.radius_mm[0], abs=0.1)


def test_the_apex_points_to_the_left_front_below_on_average():
    apices = [draw_coronary_heart(np.random.default_rng(seed)).to_patient @ (0, 0, -1) for seed in range(60)]

    # Left, posterior and superior.
    assert np.all(np.mean(apices, axis=0) * (1, -1, -1) > (0.3, 0.2, 0.4))


def test_the_distance_to_a_ball_and_to_a_straight_tube_is_exact():
    x, y, z = GRID.axes_mm()
    ball = Tube(np.array([[1.0, 2.0, -1.0]]), np.array([2.0]))
    expected = np.minimum(np.sqrt((x - 1) ** 2 + (y - 2) ** 2 + (z + 1) ** 2) - 2, 3)
    np.testing.assert_allclose(compute_distance(GRID, [ball], limit_mm=3.0), expected, atol=1e-5)

    points = np.zeros((400, 3))
    points[:, 2] = np.linspace(-50, 50, 400)
    tube = Tube(points, np.full(400, 3.0))
    expected = np.broadcast_to(np.minimum(np.hypot(x, y) - 3, 3), GRID.shape)
    # Points 0.25 mm apart: halfway between two points, a wall at 3 mm is off by 0.0026 mm.
    found = compute_distance(GRID, [tube], limit_mm=3.0)
    near_wall = np.abs(expected) < 1
    np.testing.assert_allclose(found[near_wall], expected[near_wall], atol=0.005)


def test_a_fillet_fills_the_corner_between_two_tubes_by_a_quarter_of_its_size():
    tubes = [Tube(np.array([[x, 0.0, 0.0]]), np.array([2.0])) for x in (-2.5, 2.5)]
    sharp = compute_distance(GRID, tubes, limit_mm=4.0)
    rounded = compute_distance(GRID, tubes, limit_mm=4.0, fillet_mm=1.2)

    # The voxel at (0, 0, 0) is 0.5 mm from both.
    at = (20, 22, 18)
    assert (sharp[at], rounded[at]) == pytest.approx((0.5, 0.5 - 0.3), abs=1e-4)
    near_wall = sharp < 1
    assert (sharp - rounded)[near_wall].max() <= 0.3 + 1e-5


def test_the_shares_of_a_ball_add_up_to_its_volume():
    ball = Tube(np.array([[0.1, 0.2, 0.3]]), np.array([5.0]))
    shares = compute_share(compute_distance(GRID, [ball], limit_mm=2.0), GRID)

    assert shares.sum() * np.prod(GRID.spacing_mm) == pytest.approx(4 / 3 * np.pi * 5**3, rel=0.01)


def test_plaques_stay_within_the_wall(straight):
    for seed in range(20):
        _, plaque = _draw_plaque(straight, np.random.default_rng(seed))
        off_axis = np.hypot(plaque.centreline_mm[:, 0], plaque.centreline_mm[:, 1])
        assert (off_axis + plaque.radius_mm <= 2.0).all()
        assert (off_axis > 0).all()


def test_struts_stay_within_the_wall_and_keep_their_metal(straight):
    _, struts = _draw_stent(straight, np.random.default_rng(7))
    assert np.hypot(struts[:, 0], struts[:, 1]).max() <= 0.44 * 4 + 1e-9

    inside = struts[np.abs(struts[:, 2]) < 9]
    metal = paint_stent(GRID, inside)
    assert metal.sum() * np.prod(GRID.spacing_mm) == pytest.approx(len(inside) * _METAL_HU_MM3, rel=1e-4)


def test_motion_smears_a_vessel_about_its_place():
    ball = Tube(np.array([[0.0, 0.0, 0.0]]), np.array([2.0]))
    still = compute_share(compute_distance(GRID, [ball], limit_mm=2.0), GRID)
    smeared = average_motion(still, np.array([2.0, 0.0, 0.0]), GRID)

    assert smeared.sum() == pytest.approx(still.sum(), rel=1e-4)
    np.testing.assert_allclose(ndimage.center_of_mass(smeared), ndimage.center_of_mass(still), atol=1e-3)
    widths = [np.ptp(np.argwhere(share > 0.01), axis=0) for share in (still, smeared)]
    assert widths[1][0] >= widths[0][0] + 3
    assert widths[1][1] == widths[0][1]
    np.testing.assert_allclose(average_motion(still, np.zeros(3), GRID), still, atol=1e-6)


def test_veins_have_at_most_half_of_the_arteries_contrast():
    drawn = [draw_coronary_enhancement(np.random.default_rng(seed)) for seed in range(100)]

    assert all(each.veins <= 0.5 * each.arteries and each.right_ventricle <= each.arteries for each in drawn)
