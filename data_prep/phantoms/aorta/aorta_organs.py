"""Trunk around the phantom's aorta, painted at a coarse resolution."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.phantoms.aorta.aorta_vessels import Pose, Tree
from data_prep.phantoms.scanner_noise import Field

Point = Sequence[float] | NDArray[np.float64]

AIR_HU = -1000.0
RIGHT, LEFT = 1, -1
"""Signs of the body's x axis."""


@dataclass(frozen=True)
class AortaEnhancement:
    """Hounsfield units of tissues that vary with contrast agent and patient."""

    aorta: float
    left_heart: float
    right_heart: float
    veins: float
    cava_superior: float
    muscle: float
    liver: float
    spleen: float
    kidney: float
    marrow: float
    cortex: float


def draw_aorta_enhancement(rng: np.random.Generator) -> AortaEnhancement:
    """Draw the enhancement of an early to late arterial phase.

    Veins are always darker than the aorta.
    """
    aorta = rng.uniform(230, 460)
    return AortaEnhancement(
        aorta=aorta,
        left_heart=aorta * rng.uniform(0.85, 1.08),
        right_heart=aorta * rng.uniform(0.4, 1.1),
        veins=rng.uniform(60, 0.55 * aorta),
        cava_superior=aorta * rng.uniform(0.4, 0.9),
        muscle=rng.uniform(45, 70),
        liver=rng.uniform(55, 115),
        spleen=rng.uniform(85, 150),
        kidney=rng.uniform(120, 210),
        marrow=rng.uniform(130, 280),
        cortex=rng.uniform(350, 700),
    )


class Trunk:
    """Image of the trunk, painted organ by organ.

    Coordinates are those of the body, straightened so that the spine is the line x = y = 0, and displaced by smooth
    waves so that no outline is regular.

    Args:
        axes: world coordinates x, y, z, broadcasting over ``(z, y, x)``.
        pose: pose of the body.
        voxel_mm: edge of a voxel in millimetres of the body, over which surfaces are blurred.
        rng: generator of the waves.
    """

    def __init__(self, axes: Sequence[Field], pose: Pose, voxel_mm: float, rng: np.random.Generator) -> None:
        moved = [axis - np.float32(origin) for axis, origin in zip(axes, pose.position, strict=True)]
        to_body = (pose.rotation.T / pose.scale).astype(np.float32)
        x, y, z = (row[2] * moved[2] + (row[1] * moved[1] + row[0] * moved[0]) for row in to_body)
        side, forward = pose.spine(z)
        self.x, self.y, self.z = x - side, y - forward, z
        for _ in range(4):
            numbers, start = rng.normal(0, 0.045, 3).astype(np.float32), np.float32(rng.uniform(0, 6.3))
            wave = np.sin(numbers[0] * self.x + numbers[1] * self.y + numbers[2] * self.z + start)
            self.x, self.y, self.z = (
                along + amplitude * wave
                for along, amplitude in zip(
                    (self.x, self.y, self.z), rng.uniform(-1.6, 1.6, 3).astype(np.float32), strict=True
                )
            )
        self.voxel_mm = np.float32(voxel_mm)
        self.hu = np.full(self.x.shape, AIR_HU, dtype=np.float32)

    def paint(self, *layers: tuple[Field, float | Field]) -> None:
        """Blend tissues into the image, one over the other.

        Args:
            layers: depth under the tissue's surface in millimetres (negative outside), and Hounsfield units.
        """
        for depth_mm, hu in layers:
            here = np.nonzero(depth_mm.ravel() > -self.voxel_mm / 2)[0]
            share = np.minimum(depth_mm.ravel()[here] / self.voxel_mm + np.float32(0.5), 1)
            before = self.hu.ravel()[here]
            wanted = hu.ravel()[here] if isinstance(hu, np.ndarray) else np.float32(hu)
            self.hu.ravel()[here] = before + share * (wanted - before)

    def ellipsoid(self, centre: Point, half_axes: Point, axis: Point | None = None) -> Field:
        """Depth in an ellipsoid.

        Args:
            centre: centre in millimetres.
            half_axes: three along x, y and z or, with ``axis``, two along and across the axis of revolution.
            axis: direction of the axis of revolution.
        """
        x, y, z = (along - np.float32(at) for along, at in zip((self.x, self.y, self.z), centre, strict=True))
        a, b, *others = (np.float32(1 / half) for half in half_axes)
        if axis is None:
            radius = np.sqrt((x * a) ** 2 + (y * b) ** 2 + (z * others[0]) ** 2)
        else:
            u, v, w = (np.float32(part / np.linalg.norm(axis)) for part in axis)
            along = x * u + y * v + z * w
            radius = np.sqrt((along * a) ** 2 + (x * x + y * y + z * z - along * along) * b * b)
        return (1 - radius) * np.float32(min(half_axes))

    def capsule(self, start: Point, stop: Point, radius: float) -> Field:
        """Depth in a capsule between two points."""
        ax, ay, az = (np.float32(value) for value in start)
        dx, dy, dz = (np.float32(b - a) for a, b in zip(start, stop, strict=True))
        x, y, z = self.x - ax, self.y - ay, self.z - az
        share = np.clip((x * dx + y * dy + z * dz) / (dx * dx + dy * dy + dz * dz), 0, 1)
        return np.float32(radius) - np.sqrt((x - share * dx) ** 2 + (y - share * dy) ** 2 + (z - share * dz) ** 2)


@dataclass(frozen=True)
class Places:
    """Points and heights of the straightened body that organs are placed by."""

    heights: Mapping[str, float]
    root: NDArray[np.float64]
    arch_end: NDArray[np.float64]
    at_t6: NDArray[np.float64]
    pulmonary_fork: NDArray[np.float64]
    right_atrium: tuple[float, float, float]
    kidneys: tuple[NDArray[np.float64], NDArray[np.float64]]
    dome: float


def find_places(tree: Tree) -> Places:
    """Find the places of the organs from the vessels."""
    aorta = _straighten(tree, tree.vessel("Aorta").points_mm)
    after_root = aorta[int(np.argmax(aorta[:, 2])) :]
    root, arch_end = aorta[0], after_root[min(50, len(after_root) - 1)]
    right, left = (_straighten(tree, tree.vessel(f"Renal{side}").points_mm)[-1] for side in "RL")
    return Places(
        heights=tree.heights,
        root=root,
        arch_end=arch_end,
        at_t6=after_root[int(np.argmin(np.abs(after_root[:, 2] - tree.heights["T6"])))],
        pulmonary_fork=np.array([-12.0, 0.55 * root[1] + 0.45 * arch_end[1], tree.heights["Top"] - 47]),
        right_atrium=(float(root[0]) + 34, float(root[1]) + 2, float(root[2]) - 30),
        kidneys=(right, left),
        dome=0.5 * (root[2] - 45) + 0.5 * (tree.heights["Celiac"] + 55),
    )


def _straighten(tree: Tree, world_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    body = (world_mm - tree.pose.position) @ tree.pose.rotation / tree.pose.scale
    side, forward = tree.pose.spine(body[:, 2])
    return np.stack([body[:, 0] - side, body[:, 1] - forward, body[:, 2]], axis=1)


def paint_trunk(trunk: Trunk, places: Places, enhancement: AortaEnhancement, rng: np.random.Generator) -> None:
    """Paint all tissues except the arteries."""
    wall = _paint_wall(trunk, places, enhancement, rng)
    _paint_abdomen(trunk, places, enhancement, rng, wall)
    _paint_bones(trunk, enhancement, rng)
    _paint_veins(trunk, places, enhancement)
    _paint_heart_chambers(trunk, places, enhancement, rng)
    _paint_airways(trunk, places)


def _paint_wall(trunk: Trunk, places: Places, enhancement: AortaEnhancement, rng: np.random.Generator) -> Field:
    """Paint skin, fat, muscle, ribs, lungs and diaphragm.

    Returns:
        Depth in millimetres inside the abdominal cavity.
    """
    top = places.heights["Top"]
    width, depth, fat_mm = rng.uniform(125, 155), rng.uniform(82, 108), rng.uniform(6, 20)
    radius = np.sqrt((trunk.x / np.float32(width)) ** 2 + ((trunk.y - np.float32(depth - 66)) / np.float32(depth)) ** 2)
    under_skin = (1 - radius) * np.float32(depth)
    shoulders = np.maximum(trunk.z - np.float32(top - 10), 0) ** 2 * np.float32(0.018)
    inside = under_skin - np.float32(fat_mm + 13)
    domes = np.where(trunk.x < 0, np.float32(places.dome - 12), np.float32(places.dome))
    from_centre = np.abs(trunk.x) - np.float32(62)
    roof = domes - (from_centre**2 + (trunk.y - np.float32(40)) ** 2) * np.float32(0.007)
    from_middle = np.abs(trunk.x + np.float32(4)) - np.float32(rng.uniform(30, 37))
    rib_number = (trunk.z + np.float32(0.45) * trunk.y) * np.float32(2 * np.pi / rng.uniform(20, 25))
    ribs = np.sin(rib_number) - np.float32(0.2)
    chest = np.minimum(trunk.z - np.float32(places.dome - 60), 4 - np.abs(inside + np.float32(5.5)))
    lungs = np.minimum(np.minimum(inside - shoulders, from_middle), (trunk.z - roof) * np.float32(0.7))
    diaphragm = np.minimum(np.minimum(inside, 2.5 - np.abs(trunk.z - roof + 3)), trunk.z - np.float32(5))
    trunk.paint(
        (under_skin, -100),
        (under_skin - np.float32(fat_mm), enhancement.muscle),
        (inside, -95),
        (np.minimum(chest, ribs * 5), 0.6 * enhancement.cortex),
        (lungs, rng.uniform(-890, -780)),
        (diaphragm, 50),
    )
    return np.minimum(inside, (roof - trunk.z - 5) * np.float32(0.8))


def _paint_abdomen(
    trunk: Trunk, places: Places, enhancement: AortaEnhancement, rng: np.random.Generator, cavity: Field
) -> None:
    top, celiac = places.heights["Top"], places.heights["Celiac"]
    for side in (RIGHT, LEFT):
        back = trunk.capsule((side * 34, -36, -120), (side * 28, -36, top + 60), 22)
        psoas = trunk.capsule((side * 30, 2, celiac - 20), (side * 58, 22, -100), 17)
        trunk.paint((back, enhancement.muscle), (psoas, enhancement.muscle))
    for _ in range(26):
        loop = trunk.ellipsoid(
            (rng.uniform(-85, 85), rng.uniform(58, 105), rng.uniform(-110, celiac + 10)), rng.uniform(9, 24, 3)
        )
        content = rng.choice((-700, 15, 30, 45, 180), p=(0.1, 0.25, 0.3, 0.25, 0.1))
        trunk.paint((np.minimum(loop, cavity), 60), (np.minimum(loop - 2, cavity), content))
    stomach = (rng.uniform(-58, -40), rng.uniform(62, 78), celiac + rng.uniform(10, 30))
    pouch = np.minimum(trunk.ellipsoid(stomach, (32, 27, rng.uniform(30, 48))), cavity)
    trunk.paint(
        (pouch, 70),
        (pouch - 3, rng.uniform(0, 60)),
        # Air rises to the front in a supine patient.
        (np.minimum(pouch - 3, trunk.y - np.float32(stomach[1] + rng.uniform(0, 20))), -950),
    )
    spleen = (rng.uniform(-95, -82), rng.uniform(-8, 8), celiac + rng.uniform(8, 28))
    spleen_depth = np.minimum(trunk.ellipsoid(spleen, (24, 36, rng.uniform(36, 52))), cavity)
    liver = (rng.uniform(72, 84), rng.uniform(38, 52), celiac + rng.uniform(0, 25))
    lobe = (rng.uniform(5, 20), rng.uniform(72, 82), celiac + rng.uniform(15, 35))
    right_lobe = trunk.ellipsoid(liver, (58, 62, rng.uniform(62, 78)))
    liver_depth = np.minimum(np.maximum(right_lobe, trunk.ellipsoid(lobe, (52, 24, 28))), cavity)
    trunk.paint((spleen_depth, enhancement.spleen), (liver_depth, enhancement.liver))
    for side, hilum in zip((RIGHT, LEFT), places.kidneys, strict=True):
        _paint_kidney(trunk, side, hilum, enhancement, rng)


def _paint_kidney(
    trunk: Trunk, side: int, hilum: NDArray[np.float64], enhancement: AortaEnhancement, rng: np.random.Generator
) -> None:
    centre = np.add(hilum, (side * 15, -4, rng.uniform(-6, 6)))
    axis = (side * 0.25, -0.1, -1.0)
    kidney = trunk.ellipsoid(centre, (rng.uniform(42, 52), rng.uniform(23, 27)), axis)
    pelvis = trunk.ellipsoid(np.add(centre, (-side * 12, 0, 0)), (20, 11), axis)
    trunk.paint((kidney + 6, -105), (kidney, enhancement.kidney), (np.minimum(pelvis, kidney), -60))


def _paint_bones(trunk: Trunk, enhancement: AortaEnhancement, rng: np.random.Generator) -> None:
    """Paint vertebrae, intervertebral discs, sacrum and iliac wings."""
    count = trunk.z / np.float32(rng.uniform(27, 31)) * (1 + trunk.z * np.float32(0.0005)) + np.float32(rng.random())
    level = np.abs(count - np.rint(count)) * 28
    column = np.float32(17) - np.sqrt((trunk.x / np.float32(1.18)) ** 2 + trunk.y**2)
    above_sacrum = trunk.z + np.float32(30)
    body = np.minimum(np.minimum(column + 1.5, level - 3.5), above_sacrum)
    canal = np.sqrt(trunk.x**2 + (trunk.y + np.float32(27)) ** 2)
    spinous_process = np.minimum(4 - np.abs(trunk.x), 13 - np.abs(trunk.y + np.float32(53)))
    trunk.paint(
        (np.minimum(column, above_sacrum), 85),
        (body, enhancement.cortex),
        (body - 1.8, enhancement.marrow),
        (np.minimum(np.float32(14) - canal, level - 4), 0.75 * enhancement.cortex),
        (np.float32(9) - canal, 25),
        (np.minimum(spinous_process, level - 5), 0.75 * enhancement.cortex),
    )
    bones = [trunk.ellipsoid((0, -22, -70), (42, 16, 44))]
    for side in (RIGHT, LEFT):
        bones.append(trunk.ellipsoid((side * rng.uniform(74, 82), 2, -62), (15, 46, 56)))
        bones.append(trunk.ellipsoid((side * rng.uniform(78, 84), 18, -128), (25, 25, 25)))
    for bone in bones:
        trunk.paint((bone, enhancement.cortex), (bone - 3, enhancement.marrow))


def _paint_veins(trunk: Trunk, places: Places, enhancement: AortaEnhancement) -> None:
    """Paint the superior vena cava, the inferior one and its veins."""
    top, celiac = places.heights["Top"], places.heights["Celiac"]
    cava, atrium = (21.0, 25.0), places.right_atrium
    veins: list[tuple[Point, Point, float]] = [
        ((*cava, -4.0), (*cava, celiac + 20), 10.5),
        ((*cava, celiac + 20), atrium, 11.5),
        ((*cava, 0.0), (50.0, 8.0, -95.0), 7.5),
        ((cava[0] - 3, cava[1] - 5, 0.0), (-42.0, 4.0, -95.0), 7.5),
    ]
    for side, hilum in zip((RIGHT, LEFT), places.kidneys, strict=True):
        end = (float(hilum[0]), float(hilum[1]) + 9, float(hilum[2]) + 4)
        before = (-10.0, 52.0, float(hilum[2]) + 3) if side == LEFT else end
        veins += [(end, before, 4.5)] if side == LEFT else []
        veins += [(before, (cava[0], cava[1] + 4, float(hilum[2]) + 6), 4.5)]
    for start, stop, radius in veins:
        trunk.paint(
            (trunk.capsule(start, stop, radius + 1.2), enhancement.muscle),
            (trunk.capsule(start, stop, radius), enhancement.veins),
        )
    superior = (40.0, places.root[1] - 4, top + 5)
    left_vein = trunk.capsule(superior, (-46, places.root[1] + 8, top + 26), 6.5)
    trunk.paint(
        (trunk.capsule(atrium, superior, 9.5), enhancement.cava_superior),
        (left_vein, 0.8 * enhancement.cava_superior),
    )


def _paint_heart_chambers(
    trunk: Trunk, places: Places, enhancement: AortaEnhancement, rng: np.random.Generator
) -> None:
    """Paint the four chambers and the pulmonary artery.

    The apex points left; the roof of the left atrium is at T6.
    """
    root, fork = places.root, places.pulmonary_fork
    apex = np.array([-0.68, 0.52, -0.5]) + rng.normal(0, 0.06, 3)
    apex /= np.linalg.norm(apex)
    left_atrium = np.array(
        [2.0, max(places.at_t6[1] + 34, 0.5 * (places.at_t6[1] + root[1]) + 6), places.heights["T6"] - 20]
    )
    trunk.paint(
        (trunk.ellipsoid(np.add(root, (-8, 12, -38)), (66, 48, 50)), -70),
        (trunk.ellipsoid(left_atrium, (32, 17, 22)), enhancement.muscle),
        (trunk.ellipsoid(left_atrium, (30, 15, 20)), enhancement.left_heart),
        (trunk.ellipsoid(places.right_atrium, (22, 24, 30)), 0.9 * enhancement.right_heart),
    )
    right_ventricle = trunk.ellipsoid(np.add(root, (2, 27, -36)), (38, 20, 30))
    outflow = trunk.capsule(np.add(root, (-12, 27, -22)), np.add(fork, (-2, 4, -2)), 13)
    for margin_mm, hu in ((3, enhancement.muscle + 30), (0, enhancement.right_heart)):
        trunk.paint((right_ventricle + margin_mm, hu), (outflow + margin_mm, hu))
    middle = root + apex * rng.uniform(36, 42)
    trunk.paint(
        (trunk.ellipsoid(middle, (53, 33), apex), enhancement.muscle + rng.uniform(30, 70)),
        (trunk.ellipsoid(middle, (43, rng.uniform(19, 24)), apex), enhancement.left_heart),
    )
    for end in ((52, places.arch_end[1] + 26, fork[2] - 6), (-54, places.arch_end[1] + 20, fork[2] + 2)):
        trunk.paint((trunk.capsule(fork, end, 10.5), enhancement.right_heart))


def _paint_airways(trunk: Trunk, places: Places) -> None:
    fork = np.array([6.0, places.arch_end[1] + 25, places.heights["Top"] - 34])
    ends = (np.add(fork, (4, -4, 90)), np.add(fork, (42, -6, -34)), np.add(fork, (-42, -8, -30)))
    for margin_mm, hu in ((1.8, 40), (0.0, -960)):
        for end, radius in zip(ends, (8.5, 6.5, 6.0), strict=True):
            trunk.paint((trunk.capsule(fork, end, radius + margin_mm), hu))
