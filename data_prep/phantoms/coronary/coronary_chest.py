"""Chest of the coronary phantom: lungs, bones, organs and heart."""

from dataclasses import dataclass

import numpy as np

from data_prep.phantoms.coronary.coronary_grid import CoronaryGrid, blend, compute_distance, compute_tube_share, paint
from data_prep.phantoms.coronary.coronary_heart import CoronaryHeart, Tube, compute_swelling
from data_prep.phantoms.curves import interpolate
from data_prep.phantoms.scanner_noise import Field

FAT_HU = -95.0
_VEIN_WIDTH_MM = (1.4, 2.4)


@dataclass(frozen=True)
class CoronaryEnhancement:
    """Hounsfield units of enhanced tissues.

    Args:
        arteries: aorta, left heart and coronary arteries.
        right_ventricle: right ventricle and pulmonary artery, at most as bright as the arteries.
        right_atrium: right atrium, at most as bright as the arteries.
        veins: coronary veins, at most half as bright as the arteries.
        myocardium: myocardium.
        lung: lung tissue between its vessels.
    """

    arteries: float
    right_ventricle: float
    right_atrium: float
    veins: float
    myocardium: float
    lung: float


def draw_coronary_enhancement(rng: np.random.Generator) -> CoronaryEnhancement:
    """Draw amount and timing of the contrast agent."""
    arteries = rng.uniform(300, 560)
    return CoronaryEnhancement(
        arteries=arteries,
        right_ventricle=arteries * rng.uniform(0.3, 1.0),
        right_atrium=arteries * rng.uniform(0.3, 1.0),
        veins=rng.uniform(60, 0.42 * arteries),
        myocardium=rng.uniform(85, 135),
        lung=rng.uniform(-880, -790),
    )


def paint_chest(
    grid: CoronaryGrid, heart: CoronaryHeart, enhancement: CoronaryEnhancement, rng: np.random.Generator
) -> Field:
    """Paint all organs except the arteries."""
    hu = np.full(grid.shape, np.float32(enhancement.lung))
    _, depth_mm, height_mm = (float(mm) for mm in heart.extent_mm)
    _paint_lung_vessels(hu, grid, enhancement, rng)
    _paint_behind(hu, grid, enhancement, depth_mm, rng)
    _paint_below(hu, grid, height_mm, rng)
    _paint_front(hu, grid, depth_mm, rng)
    _paint_heart_and_veins(hu, grid, heart, enhancement, rng)
    return hu


def draw_veins(heart: CoronaryHeart, rng: np.random.Generator) -> list[Tube]:
    """Draw one coronary vein per groove, in the heart's frame."""
    groove, front, back = heart.groove_degrees, heart.anterior_degrees, heart.posterior_degrees
    sheet = 1 + 2.2 / heart.radius_mm
    side = rng.choice([-1, 1], 2) * rng.uniform(9, 13, 2)
    courses = [
        [(front + 25, groove - 4), (0, groove - 12), (45, groove - 13), (back, groove - 9), (back + 35, groove - 14)],
        [(front + 20, groove + 2), (front + side[0], groove + 25), (front + side[0], 130)],
        [(back + 4, groove - 8), (back + side[1], groove + 25), (back + side[1], 125)],
    ]
    tubes = []
    for course in courses:
        corners = np.array([(*corner, sheet) for corner in course])
        steps = np.linspace(0, len(corners) - 1, 160)
        places = interpolate(steps, np.arange(len(corners)), corners)
        tubes.append(Tube(heart.place(places), np.linspace(rng.uniform(*_VEIN_WIDTH_MM), 0.8, len(steps))))
    return tubes


def rotate_to_patient(tube: Tube, heart: CoronaryHeart) -> Tube:
    """Rotate a tube to the patient's frame about the heart's centre."""
    return Tube(tube.centreline_mm @ heart.to_patient.T, tube.radius_mm)


def _paint_lung_vessels(
    hu: Field, grid: CoronaryGrid, enhancement: CoronaryEnhancement, rng: np.random.Generator
) -> None:
    """Paint pulmonary vessels, as bright as coronary arteries but in air."""
    size = np.multiply(grid.shape, grid.spacing_mm)
    for _ in range(36):
        middle = np.array(grid.origin_mm) + rng.uniform(0, 1, 3) * size
        half = rng.normal(size=3)
        half *= rng.uniform(8, 22) / np.linalg.norm(half)
        share = np.linspace(-1, 1, 60)[:, None]
        points = middle + share * half + np.sin(2.5 * share) * rng.normal(0, 3, 3)
        _paint_tubes(
            hu,
            grid,
            [Tube(points, np.linspace(rng.uniform(0.8, 2.8), 0.6, len(points)))],
            enhancement.arteries * rng.uniform(0.5, 1.0),
        )


def _paint_behind(
    hu: Field, grid: CoronaryGrid, enhancement: CoronaryEnhancement, depth_mm: float, rng: np.random.Generator
) -> None:
    """Paint the descending aorta, the spine and its discs."""
    x, y, z = grid.axes_mm()
    behind_mm = depth_mm + rng.uniform(10, 16)
    aorta_mm = np.hypot(x - np.float32(rng.uniform(0, 18)), y - np.float32(behind_mm)) - np.float32(rng.uniform(7, 9))
    spine_mm = np.hypot(x + np.float32(rng.uniform(8, 22)), y - np.float32(behind_mm + 12)) - np.float32(13)
    spine_mm, aorta_mm = (np.broadcast_to(distance, grid.shape) for distance in (spine_mm, aorta_mm))
    spine = _layer_bone(spine_mm, rng)
    disc_mm = np.abs(np.mod(z + np.float32(rng.uniform(0, 26)), 26) - 13) - 2.5
    paint(
        hu,
        grid,
        (np.minimum(spine_mm - 6, aorta_mm - 2.5), 40),
        *spine,
        (np.maximum(spine_mm, disc_mm), 80),
        (aorta_mm, enhancement.arteries * rng.uniform(0.92, 1.0)),
    )


def _paint_below(hu: Field, grid: CoronaryGrid, height_mm: float, rng: np.random.Generator) -> None:
    """Paint the organs below the diaphragm.

    The liver is on the right, spleen or stomach on the left.
    """
    x, y, z = grid.axes_mm()
    top_mm = -height_mm * rng.uniform(0.7, 0.95)
    bulge = np.float32(rng.uniform(0.004, 0.009)) * (np.square(x + 15) + np.square(y - 10))
    dome_mm = z - np.float32(top_mm) + bulge
    liver = np.float32(rng.uniform(90, 130))
    left = np.clip((x - np.float32(rng.uniform(5, 25))) / 4, 0, 1)
    paint(hu, grid, (dome_mm, liver + left * (np.float32(rng.uniform(20, 160)) - liver)))


def _paint_front(hu: Field, grid: CoronaryGrid, depth_mm: float, rng: np.random.Generator) -> None:
    """Paint the anterior chest wall: fat, muscle, ribs and sternum."""
    x, y, z = grid.axes_mm()
    wall_mm = y + np.float32(depth_mm + rng.uniform(2, 7)) - np.float32(0.004) * x * x
    wall_mm = np.broadcast_to(wall_mm, grid.shape)
    slope = x * np.float32(rng.uniform(0.2, 0.5))
    height = np.abs(np.mod(z + np.abs(slope) + np.float32(rng.uniform(0, 22)), 22) - 11)
    ribs = _layer_bone(np.hypot(height, wall_mm + 5) - np.float32(4.0), rng)
    middle_mm = np.float32(rng.uniform(5, 20))
    sternum = _layer_bone(np.maximum(np.abs(x + middle_mm) - 14, np.abs(wall_mm + 5) - 4), rng)
    paint(hu, grid, (wall_mm, 45), *ribs, *sternum, (wall_mm + 14, FAT_HU))


def _layer_bone(distance_mm: Field, rng: np.random.Generator) -> tuple[tuple[Field, float], tuple[Field, float]]:
    """Draw the layers of a bone: bright cortex and marrow inside."""
    return (distance_mm, rng.uniform(550, 950)), (distance_mm + np.float32(1.3), rng.uniform(150, 280))


def _paint_heart_and_veins(
    hu: Field, grid: CoronaryGrid, heart: CoronaryHeart, enhancement: CoronaryEnhancement, rng: np.random.Generator
) -> None:
    """Paint fat, myocardium, chambers, pulmonary artery and coronary veins."""
    position = grid.rotate_axes(heart.to_patient)
    depth_mm, way = _compute_height(position, heart)
    lean = rng.normal(size=3)
    lean *= 0.5 / np.linalg.norm(lean)
    leaning = 1 + sum(np.float32(share) * axis for share, axis in zip(lean, way, strict=True))
    fat_mm = np.float32(rng.uniform(3.2, 6.0)) * leaning
    # Fat fills the groove between atria and ventricles.
    groove_mm = np.abs(position[2] - np.float32(heart.groove_mm)) - np.float32(rng.uniform(1.5, 3.0))
    myocardium_mm = np.maximum(depth_mm, np.minimum(-groove_mm, depth_mm + 4))
    paint(
        hu,
        grid,
        (depth_mm - fat_mm - np.float32(0.7), 35),
        (depth_mm - fat_mm, FAT_HU),
        (myocardium_mm, enhancement.myocardium),
    )
    _paint_chambers(hu, grid, heart, enhancement, position, depth_mm, rng)
    paint_great_vessel(hu, grid, heart, heart.pulmonary_artery, enhancement.right_ventricle)
    _paint_tubes(hu, grid, [rotate_to_patient(vein, heart) for vein in draw_veins(heart, rng)], enhancement.veins)


def _paint_chambers(
    hu: Field,
    grid: CoronaryGrid,
    heart: CoronaryHeart,
    enhancement: CoronaryEnhancement,
    position: list[Field],
    depth_mm: Field,
    rng: np.random.Generator,
) -> None:
    a, b, c = heart.half_axes_mm
    x, y, z = position
    wall_mm = np.float32(rng.uniform(5.5, 8.0))
    half_axes = (np.float32(0.52 * a), np.float32(0.6 * b), np.float32(0.72 * c))
    ventricle_mm = _compute_ellipsoid_distance(position, (0.28 * a, 0.04 * b, -0.12 * c), half_axes)
    ventricle_mm = np.maximum(ventricle_mm, depth_mm + wall_mm)
    above_mm = z - np.float32(heart.groove_mm)
    left_ventricle_mm = np.maximum(ventricle_mm, above_mm + 1)
    right_wall_mm = np.float32(rng.uniform(2.2, 3.5))
    right_ventricle_mm = np.maximum(np.maximum(depth_mm + right_wall_mm, wall_mm - ventricle_mm), above_mm + 3)
    side = np.radians(rng.normal(25, 10))
    across = x * np.float32(np.cos(side)) + y * np.float32(np.sin(side)) - np.float32(0.05 * a)
    right_ventricle_mm = np.maximum(right_ventricle_mm, across)
    atria_mm = np.maximum(depth_mm + np.float32(2.2), 3 - above_mm)
    chambers = (
        (left_ventricle_mm, enhancement.arteries * rng.uniform(0.95, 1.03)),
        (right_ventricle_mm, enhancement.right_ventricle),
        (np.maximum(atria_mm, 1.2 - across), enhancement.arteries * rng.uniform(0.97, 1.06)),
        (np.maximum(atria_mm, across + np.float32(1.2)), enhancement.right_atrium),
    )
    papillary_mm = np.hypot(x - np.float32(0.35 * a), y - np.float32(rng.uniform(-0.25, 0.3) * b)) - np.float32(0.1 * a)
    papillary_mm = np.maximum(
        np.maximum(papillary_mm, np.abs(z + np.float32(0.3 * c)) - np.float32(0.2 * c)), ventricle_mm
    )
    paint(hu, grid, *chambers, (papillary_mm, enhancement.myocardium))


def paint_great_vessel(hu: Field, grid: CoronaryGrid, heart: CoronaryHeart, tube: Tube, blood: float) -> None:
    """Paint a great vessel with its wall and the fat around.

    Wall and fat begin above the ventricles.
    """
    vessel_mm = compute_distance(grid, [rotate_to_patient(tube, heart)], limit_mm=4.0)
    below_mm = np.float32(heart.groove_mm) - grid.rotate_axes(heart.to_patient)[2]
    paint(
        hu,
        grid,
        (np.maximum(vessel_mm - np.float32(2.2), below_mm), FAT_HU),
        (np.maximum(vessel_mm - np.float32(1.0), below_mm), 55.0),
        (vessel_mm, blood),
    )


def _compute_height(position: list[Field], heart: CoronaryHeart) -> tuple[Field, list[Field]]:
    """Compute height above the heart's surface, and direction from its centre.

    The height in millimetres is approximate.
    """
    scaled = [axis / np.float32(half) for axis, half in zip(position, heart.half_axes_mm, strict=True)]
    distance = np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2) + np.float32(1e-4)
    way = [axis / distance for axis in scaled]
    radius_mm = np.sqrt(position[0] ** 2 + position[1] ** 2 + position[2] ** 2)
    surface = compute_swelling(np.stack(way), heart.swellings)
    return radius_mm * (1 - surface / distance), way


def _compute_ellipsoid_distance(
    position: list[Field], centre: tuple[float, ...], half_axes: tuple[np.float32, ...]
) -> Field:
    """Compute the approximate signed distance to an ellipsoid's surface."""
    scaled = [(axis - np.float32(at)) / half for axis, at, half in zip(position, centre, half_axes, strict=True)]
    distance = np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2)
    return (distance - 1) * np.float32(np.prod(half_axes) ** (1 / 3))


def _paint_tubes(hu: Field, grid: CoronaryGrid, tubes: list[Tube], value: float) -> None:
    for tube in tubes:
        box, share = compute_tube_share(grid, tube)
        blend(hu[box], share, value)
