"""Chest of the coronary phantom in Hounsfield units: lungs, bones, organs and heart."""

from dataclasses import dataclass

import numpy as np

from data_prep.phantoms.coronary.coronary_grid import Field, Grid, blend, coverage, distance_to_tubes, share_of_tube
from data_prep.phantoms.coronary.coronary_heart import CoronaryHeart, Tube, swelling
from data_prep.phantoms.curves import interpolate

FAT_HU = -95.0
_VEIN_WIDTH_MM = (1.4, 2.4)


@dataclass(frozen=True)
class Enhancement:
    """Hounsfield units of enhanced tissues; right chambers have at most as much as the left ones.

    Args:
        arteries: in the aorta, the left heart and the coronary arteries.
        right_ventricle: in it and in the pulmonary artery.
        right_atrium: in it.
        veins: in the coronary veins, at most half of the arteries'.
        myocardium: in the muscle.
        lung: in the lung between its vessels.
    """

    arteries: float
    right_ventricle: float
    right_atrium: float
    veins: float
    myocardium: float
    lung: float


def draw_enhancement(rng: np.random.Generator) -> Enhancement:
    """Draw more or less contrast agent that arrives early or late."""
    arteries = rng.uniform(300, 560)
    return Enhancement(
        arteries=arteries,
        right_ventricle=arteries * rng.uniform(0.3, 1.0),
        right_atrium=arteries * rng.uniform(0.3, 1.0),
        veins=rng.uniform(60, 0.42 * arteries),
        myocardium=rng.uniform(85, 135),
        lung=rng.uniform(-880, -790),
    )


def paint_chest(grid: Grid, heart: CoronaryHeart, enhancement: Enhancement, rng: np.random.Generator) -> Field:
    """Paint all but the arteries: lungs with vessels, chest wall, organs around, and the heart itself."""
    hu = np.full(grid.shape, np.float32(enhancement.lung))
    _, depth_mm, height_mm = (float(mm) for mm in heart.reach_mm)
    _paint_lung_vessels(hu, grid, enhancement, rng)
    _paint_behind(hu, grid, enhancement, depth_mm, rng)
    _paint_below(hu, grid, height_mm, rng)
    _paint_front(hu, grid, depth_mm, rng)
    _paint_heart(hu, grid, heart, enhancement, rng)
    return hu


def paint_aorta(hu: Field, grid: Grid, heart: CoronaryHeart, enhancement: Enhancement) -> None:
    """Paint the ascending aorta with its wall, and fat around it outside of the heart."""
    _paint_trunk(hu, grid, heart, heart.aorta, enhancement.arteries)


def coronary_veins(heart: CoronaryHeart, rng: np.random.Generator) -> list[Tube]:
    """Draw veins beside the arteries, in the heart's frame: one in each of the three grooves."""
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
        radius = np.linspace(rng.uniform(*_VEIN_WIDTH_MM), 0.8, len(steps))
        tubes.append(Tube(heart.place(places), radius))
    return tubes


def to_patient(tube: Tube, heart: CoronaryHeart) -> Tube:
    """Turn a tube into the patient's frame, the heart's middle being 0."""
    return Tube(tube.centreline_mm @ heart.to_patient.T, tube.radius_mm)


def _paint_lung_vessels(hu: Field, grid: Grid, enhancement: Enhancement, rng: np.random.Generator) -> None:
    """Paint arteries and veins of the lung: as bright as coronary arteries, but in air."""
    size = np.multiply(grid.shape, grid.spacing_mm)
    for _ in range(36):
        middle = np.array(grid.origin_mm) + rng.uniform(0, 1, 3) * size
        half = rng.normal(size=3)
        half *= rng.uniform(8, 22) / np.linalg.norm(half)
        share = np.linspace(-1, 1, 60)[:, None]
        points = middle + share * half + np.sin(2.5 * share) * rng.normal(0, 3, 3)
        tube = Tube(points, np.linspace(rng.uniform(0.8, 2.8), 0.6, len(points)))
        blood = enhancement.arteries * rng.uniform(0.5, 1.0)
        _paint_tubes(hu, grid, [tube], blood)


def _paint_behind(hu: Field, grid: Grid, enhancement: Enhancement, depth_mm: float, rng: np.random.Generator) -> None:
    """Paint the descending aorta and the spine with its discs."""
    x, y, z = grid.axes_mm()
    behind_mm = depth_mm + rng.uniform(10, 16)
    aorta_mm = np.hypot(x - np.float32(rng.uniform(0, 18)), y - np.float32(behind_mm)) - np.float32(rng.uniform(7, 9))
    spine_mm = np.hypot(x + np.float32(rng.uniform(8, 22)), y - np.float32(behind_mm + 12)) - np.float32(13)
    spine_mm, aorta_mm = (np.broadcast_to(distance, grid.shape) for distance in (spine_mm, aorta_mm))
    soft_mm = np.minimum(spine_mm - 6, aorta_mm - 2.5)
    blend(hu, coverage(soft_mm, grid), 40)
    _paint_bone(hu, grid, spine_mm, rng)
    disc_mm = np.abs(np.mod(z + np.float32(rng.uniform(0, 26)), 26) - 13) - 2.5
    blend(hu, coverage(np.maximum(spine_mm, disc_mm), grid), 80)
    blend(hu, coverage(aorta_mm, grid), enhancement.arteries * rng.uniform(0.92, 1.0))


def _paint_below(hu: Field, grid: Grid, height_mm: float, rng: np.random.Generator) -> None:
    """Paint the diaphragm's dome: liver on the right, spleen or stomach on the left."""
    x, y, z = grid.axes_mm()
    top_mm = -height_mm * rng.uniform(0.7, 0.95)
    bulge = np.float32(rng.uniform(0.004, 0.009)) * (np.square(x + 15) + np.square(y - 10))
    dome_mm = z - np.float32(top_mm) + bulge
    liver = np.float32(rng.uniform(90, 130))
    left = np.clip((x - np.float32(rng.uniform(5, 25))) / 4, 0, 1)
    blend(hu, coverage(dome_mm, grid), liver + left * (np.float32(rng.uniform(20, 160)) - liver))


def _paint_front(hu: Field, grid: Grid, depth_mm: float, rng: np.random.Generator) -> None:
    """Paint the anterior chest wall: fat, muscle, ribs and sternum."""
    x, y, z = grid.axes_mm()
    wall_mm = y + np.float32(depth_mm + rng.uniform(2, 7)) - np.float32(0.004) * x * x
    wall_mm = np.broadcast_to(wall_mm, grid.shape)
    blend(hu, coverage(wall_mm, grid), 45)
    slope = x * np.float32(rng.uniform(0.2, 0.5))
    height = np.abs(np.mod(z + np.abs(slope) + np.float32(rng.uniform(0, 22)), 22) - 11)
    rib_mm = np.hypot(height, wall_mm + 5) - np.float32(4.0)
    _paint_bone(hu, grid, rib_mm, rng)
    middle_mm = np.float32(rng.uniform(5, 20))
    sternum_mm = np.maximum(np.abs(x + middle_mm) - 14, np.abs(wall_mm + 5) - 4)
    _paint_bone(hu, grid, sternum_mm, rng)
    blend(hu, coverage(wall_mm + 14, grid), FAT_HU)


def _paint_bone(hu: Field, grid: Grid, distance_mm: Field, rng: np.random.Generator) -> None:
    """Paint marrow in a bright shell."""
    blend(hu, coverage(distance_mm, grid), rng.uniform(550, 950))
    blend(hu, coverage(distance_mm + np.float32(1.3), grid), rng.uniform(150, 280))


def _paint_heart(
    hu: Field, grid: Grid, heart: CoronaryHeart, enhancement: Enhancement, rng: np.random.Generator
) -> None:
    """Paint fat, muscle, the four chambers, the great vessels and the veins."""
    position = grid.rotated(heart.to_patient)
    depth_mm, way = _depth(position, heart)
    lean = rng.normal(size=3)
    lean *= 0.5 / np.linalg.norm(lean)
    leaning = 1 + sum(np.float32(share) * axis for share, axis in zip(lean, way, strict=True))
    fat_mm = np.float32(rng.uniform(3.2, 6.0)) * leaning
    blend(hu, coverage(depth_mm - fat_mm - np.float32(0.7), grid), 35)
    blend(hu, coverage(depth_mm - fat_mm, grid), FAT_HU)
    # Fat fills the groove between atria and ventricles.
    groove_mm = np.abs(position[2] - np.float32(heart.groove_mm)) - np.float32(rng.uniform(1.5, 3.0))
    muscle_mm = np.maximum(depth_mm, np.minimum(-groove_mm, depth_mm + 4))
    blend(hu, coverage(muscle_mm, grid), enhancement.myocardium)
    _paint_chambers(hu, grid, heart, enhancement, position, depth_mm, rng)
    _paint_trunk(hu, grid, heart, heart.pulmonary_artery, enhancement.right_ventricle)
    _paint_tubes(hu, grid, [to_patient(vein, heart) for vein in coronary_veins(heart, rng)], enhancement.veins)


def _paint_chambers(
    hu: Field,
    grid: Grid,
    heart: CoronaryHeart,
    enhancement: Enhancement,
    position: list[Field],
    depth_mm: Field,
    rng: np.random.Generator,
) -> None:
    a, b, c = heart.half_axes_mm
    x, y, z = position
    wall_mm = np.float32(rng.uniform(5.5, 8.0))
    half_axes = (np.float32(0.52 * a), np.float32(0.6 * b), np.float32(0.72 * c))
    ventricle_mm = _ellipsoid(position, (0.28 * a, 0.04 * b, -0.12 * c), half_axes)
    ventricle_mm = np.maximum(ventricle_mm, depth_mm + wall_mm)
    above_mm = z - np.float32(heart.groove_mm)
    left_ventricle_mm = np.maximum(ventricle_mm, above_mm + 1)
    right_wall_mm = np.float32(rng.uniform(2.2, 3.5))
    right_ventricle_mm = np.maximum(np.maximum(depth_mm + right_wall_mm, wall_mm - ventricle_mm), above_mm + 3)
    side = np.radians(rng.normal(25, 10))
    across = x * np.float32(np.cos(side)) + y * np.float32(np.sin(side)) - np.float32(0.05 * a)
    right_ventricle_mm = np.maximum(right_ventricle_mm, across)
    atria_mm = np.maximum(depth_mm + np.float32(2.2), 3 - above_mm)
    for distance_mm, blood in (
        (left_ventricle_mm, enhancement.arteries * rng.uniform(0.95, 1.03)),
        (right_ventricle_mm, enhancement.right_ventricle),
        (np.maximum(atria_mm, 1.2 - across), enhancement.arteries * rng.uniform(0.97, 1.06)),
        (np.maximum(atria_mm, across + np.float32(1.2)), enhancement.right_atrium),
    ):
        blend(hu, coverage(distance_mm, grid), blood)
    papillary_mm = np.hypot(x - np.float32(0.35 * a), y - np.float32(rng.uniform(-0.25, 0.3) * b)) - np.float32(0.1 * a)
    papillary_mm = np.maximum(
        np.maximum(papillary_mm, np.abs(z + np.float32(0.3 * c)) - np.float32(0.2 * c)), ventricle_mm
    )
    blend(hu, coverage(papillary_mm, grid), enhancement.myocardium)


def _paint_trunk(hu: Field, grid: Grid, heart: CoronaryHeart, tube: Tube, blood: float) -> None:
    """Paint a great vessel; its wall and the fat around it begin above the ventricles."""
    trunk_mm = distance_to_tubes(grid, [to_patient(tube, heart)], reach_mm=4.0)
    below_mm = np.float32(heart.groove_mm) - grid.rotated(heart.to_patient)[2]
    for margin_mm, value in ((2.2, FAT_HU), (1.0, 55.0)):
        blend(hu, coverage(np.maximum(trunk_mm - np.float32(margin_mm), below_mm), grid), value)
    blend(hu, coverage(trunk_mm, grid), blood)


def _depth(position: list[Field], heart: CoronaryHeart) -> tuple[Field, list[Field]]:
    """Approximate height above the heart's surface in millimetres, and direction from the middle."""
    scaled = [axis / np.float32(half) for axis, half in zip(position, heart.half_axes_mm, strict=True)]
    distance = np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2) + np.float32(1e-4)
    way = [axis / distance for axis in scaled]
    radius_mm = np.sqrt(position[0] ** 2 + position[1] ** 2 + position[2] ** 2)
    surface = swelling(np.stack(way), heart.swellings)
    return radius_mm * (1 - surface / distance), way


def _ellipsoid(position: list[Field], centre: tuple[float, ...], half_axes: tuple[np.float32, ...]) -> Field:
    """Approximate signed distance to an ellipsoid's surface."""
    scaled = [(axis - np.float32(at)) / half for axis, at, half in zip(position, centre, half_axes, strict=True)]
    distance = np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2)
    return (distance - 1) * np.float32(np.prod(half_axes) ** (1 / 3))


def _paint_tubes(hu: Field, grid: Grid, tubes: list[Tube], value: float) -> None:
    for tube in tubes:
        box, share = share_of_tube(grid, tube)
        blend(hu[box], share, value)
