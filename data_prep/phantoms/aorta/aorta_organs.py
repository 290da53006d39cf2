"""Surroundings of the phantom's aorta: heart, lungs, bones, organs and veins, at a coarse resolution."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.phantoms.aorta.aorta_vessels import Pose, Tree

Field = NDArray[np.float32]
Point = Sequence[float] | NDArray[np.float64]

AIR_HU = -1000.0
RIGHT, LEFT = 1, -1
"""Signs of the body's x axis."""


@dataclass(frozen=True)
class Enhancement:
    """CT numbers that contrast agent and constitution change."""

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


def draw_enhancement(rng: np.random.Generator) -> Enhancement:
    """Draw an early to late arterial phase; veins are always darker than the aorta."""
    aorta = rng.uniform(230, 460)
    return Enhancement(
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

    Coordinates are the body's, straightened so that the spine is the line x = y = 0, and gently folded so that no
    outline is regular. A tissue is mixed in by its depth under the organ's surface.

    Args:
        axes: world coordinates x, y, z, broadcasting over ``(z, y, x)``.
        pose: of the body.
        voxel_mm: edge of a voxel in the body's millimetres, over which surfaces are blurred.
        rng: draws the folds.
    """

    def __init__(self, axes: Sequence[Field], pose: Pose, voxel_mm: float, rng: np.random.Generator) -> None:
        moved = [axis - np.float32(origin) for axis, origin in zip(axes, pose.position, strict=True)]
        to_body = (pose.rotation.T / pose.scale).astype(np.float32)
        x, y, z = (row[2] * moved[2] + (row[1] * moved[1] + row[0] * moved[0]) for row in to_body)
        side, forward = pose.spine(z)
        self.x, self.y, self.z = x - side, y - forward, z
        for _ in range(4):
            numbers, start = rng.normal(0, 0.045, 3).astype(np.float32), np.float32(rng.uniform(0, 6.3))
            fold = np.sin(numbers[0] * self.x + numbers[1] * self.y + numbers[2] * self.z + start)
            amplitudes = rng.uniform(-1.6, 1.6, 3).astype(np.float32)
            self.x, self.y, self.z = (
                along + amplitude * fold for along, amplitude in zip((self.x, self.y, self.z), amplitudes, strict=True)
            )
        self.voxel_mm = np.float32(voxel_mm)
        self.hu = np.full(self.x.shape, AIR_HU, dtype=np.float32)

    def paint(self, depth_mm: Field, hu: float | Field) -> None:
        """Mix in a tissue where its depth is positive."""
        here = np.nonzero(depth_mm.ravel() > -self.voxel_mm / 2)[0]
        share = np.minimum(depth_mm.ravel()[here] / self.voxel_mm + np.float32(0.5), 1)
        before = self.hu.ravel()[here]
        wanted = hu.ravel()[here] if isinstance(hu, np.ndarray) else np.float32(hu)
        self.hu.ravel()[here] = before + share * (wanted - before)

    def ball(self, centre: Point, half_axes: Point, axis: Point | None = None) -> Field:
        """Depth in an ellipsoid; with an axis, one of revolution with half axes along and across it."""
        x, y, z = (along - np.float32(at) for along, at in zip((self.x, self.y, self.z), centre, strict=True))
        a, b, *others = (np.float32(1 / half) for half in half_axes)
        if axis is None:
            radius = np.sqrt((x * a) ** 2 + (y * b) ** 2 + (z * others[0]) ** 2)
        else:
            u, v, w = (np.float32(part / np.linalg.norm(axis)) for part in axis)
            along = x * u + y * v + z * w
            radius = np.sqrt((along * a) ** 2 + (x * x + y * y + z * z - along * along) * b * b)
        return (1 - radius) * np.float32(min(half_axes))

    def rod(self, start: Point, stop: Point, radius: float) -> Field:
        """Depth in a capsule between two points."""
        ax, ay, az = (np.float32(value) for value in start)
        dx, dy, dz = (np.float32(b - a) for a, b in zip(start, stop, strict=True))
        x, y, z = self.x - ax, self.y - ay, self.z - az
        share = np.clip((x * dx + y * dy + z * dz) / (dx * dx + dy * dy + dz * dz), 0, 1)
        return np.float32(radius) - np.sqrt((x - share * dx) ** 2 + (y - share * dy) ** 2 + (z - share * dz) ** 2)


@dataclass(frozen=True)
class Places:
    """Points and levels of the vessels in the straightened body; organs are placed by them."""

    top: float
    celiac: float
    t6: float
    root: NDArray[np.float64]
    arch_end: NDArray[np.float64]
    at_t6: NDArray[np.float64]
    kidneys: tuple[NDArray[np.float64], NDArray[np.float64]]
    dome: float

    @property
    def under_arch(self) -> NDArray[np.float64]:
        """Fork of the pulmonary artery."""
        return np.array([-12.0, 0.55 * self.root[1] + 0.45 * self.arch_end[1], self.top - 47])


def find_places(tree: Tree) -> Places:
    """Find the places in a tree."""
    aorta = _straighten(tree, tree.vessel("Aorta").points_mm)
    after_root = aorta[int(np.argmax(aorta[:, 2])) :]
    at_t6 = after_root[int(np.argmin(np.abs(after_root[:, 2] - tree.heights["T6"])))]
    right, left = (_straighten(tree, tree.vessel(f"Renal{side}").points_mm)[-1] for side in "RL")
    return Places(
        top=tree.heights["Top"],
        celiac=tree.heights["Celiac"],
        t6=tree.heights["T6"],
        root=aorta[0],
        arch_end=after_root[min(50, len(after_root) - 1)],
        at_t6=at_t6,
        kidneys=(right, left),
        dome=0.5 * (aorta[0][2] - 45) + 0.5 * (tree.heights["Celiac"] + 55),
    )


def _straighten(tree: Tree, world_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    body = (world_mm - tree.pose.position) @ tree.pose.rotation / tree.pose.scale
    side, forward = tree.pose.spine(body[:, 2])
    return np.stack([body[:, 0] - side, body[:, 1] - forward, body[:, 2]], axis=1)


def paint_trunk(trunk: Trunk, places: Places, enhancement: Enhancement, rng: np.random.Generator) -> None:
    """Paint all tissues but the arteries."""
    wall = _paint_wall(trunk, places, enhancement, rng)
    _paint_abdomen(trunk, places, enhancement, rng, wall)
    _paint_bones(trunk, enhancement, rng)
    _paint_veins(trunk, places, enhancement)
    _paint_heart(trunk, places, enhancement, rng)
    _paint_airways(trunk, places)


def _paint_wall(trunk: Trunk, places: Places, enhancement: Enhancement, rng: np.random.Generator) -> Field:
    """Paint skin, fat, muscle, ribs and lungs; return the depth under the inner side of the muscles."""
    width, depth, fat_mm = rng.uniform(125, 155), rng.uniform(82, 108), rng.uniform(6, 20)
    radius = np.sqrt((trunk.x / np.float32(width)) ** 2 + ((trunk.y - np.float32(depth - 66)) / np.float32(depth)) ** 2)
    under_skin = (1 - radius) * np.float32(depth)
    trunk.paint(under_skin, -100)
    trunk.paint(under_skin - np.float32(fat_mm), enhancement.muscle)
    shoulders = np.maximum(trunk.z - np.float32(places.top - 10), 0) ** 2 * np.float32(0.018)
    inside = under_skin - np.float32(fat_mm + 13)
    trunk.paint(inside, -95)
    domes = np.where(trunk.x < 0, np.float32(places.dome - 12), np.float32(places.dome))
    beside = np.abs(trunk.x) - np.float32(62)
    roof = domes - (beside**2 + (trunk.y - np.float32(40)) ** 2) * np.float32(0.007)
    from_middle = np.abs(trunk.x + np.float32(4)) - np.float32(rng.uniform(30, 37))
    rib_number = (trunk.z + np.float32(0.45) * trunk.y) * np.float32(2 * np.pi / rng.uniform(20, 25))
    ribs = np.sin(rib_number) - np.float32(0.2)
    chest = np.minimum(trunk.z - np.float32(places.dome - 60), 4 - np.abs(inside + np.float32(5.5)))
    trunk.paint(np.minimum(chest, ribs * 5), 0.6 * enhancement.cortex)
    lungs = np.minimum(np.minimum(inside - shoulders, from_middle), (trunk.z - roof) * np.float32(0.7))
    trunk.paint(lungs, rng.uniform(-890, -780))
    trunk.paint(np.minimum(np.minimum(inside, 2.5 - np.abs(trunk.z - roof + 3)), trunk.z - np.float32(5)), 50)
    return np.minimum(inside, (roof - trunk.z - 5) * np.float32(0.8))


def _paint_abdomen(
    trunk: Trunk, places: Places, enhancement: Enhancement, rng: np.random.Generator, room: Field
) -> None:
    for side in (RIGHT, LEFT):
        trunk.paint(trunk.rod((side * 34, -36, -120), (side * 28, -36, places.top + 60), 22), enhancement.muscle)
        trunk.paint(trunk.rod((side * 30, 2, places.celiac - 20), (side * 58, 22, -100), 17), enhancement.muscle)
    for _ in range(26):
        centre = (rng.uniform(-85, 85), rng.uniform(58, 105), rng.uniform(-110, places.celiac + 10))
        loop = trunk.ball(centre, rng.uniform(9, 24, 3))
        content = rng.choice((-700, 15, 30, 45, 180), p=(0.1, 0.25, 0.3, 0.25, 0.1))
        trunk.paint(np.minimum(loop, room), 60)
        trunk.paint(np.minimum(loop - 2, room), content)
    stomach = (rng.uniform(-58, -40), rng.uniform(62, 78), places.celiac + rng.uniform(10, 30))
    pouch = np.minimum(trunk.ball(stomach, (32, 27, rng.uniform(30, 48))), room)
    trunk.paint(pouch, 70)
    trunk.paint(pouch - 3, rng.uniform(0, 60))
    # Air rises to the front of somebody lying on the back.
    trunk.paint(np.minimum(pouch - 3, trunk.y - np.float32(stomach[1] + rng.uniform(0, 20))), -950)
    spleen = (rng.uniform(-95, -82), rng.uniform(-8, 8), places.celiac + rng.uniform(8, 28))
    trunk.paint(np.minimum(trunk.ball(spleen, (24, 36, rng.uniform(36, 52))), room), enhancement.spleen)
    liver = (rng.uniform(72, 84), rng.uniform(38, 52), places.celiac + rng.uniform(0, 25))
    lobe = (rng.uniform(5, 20), rng.uniform(72, 82), places.celiac + rng.uniform(15, 35))
    whole = np.maximum(trunk.ball(liver, (58, 62, rng.uniform(62, 78))), trunk.ball(lobe, (52, 24, 28)))
    trunk.paint(np.minimum(whole, room), enhancement.liver)
    for side, hilum in zip((RIGHT, LEFT), places.kidneys, strict=True):
        _paint_kidney(trunk, side, hilum, enhancement, rng)


def _paint_kidney(
    trunk: Trunk, side: int, hilum: NDArray[np.float64], enhancement: Enhancement, rng: np.random.Generator
) -> None:
    centre = np.add(hilum, (side * 15, -4, rng.uniform(-6, 6)))
    axis = (side * 0.25, -0.1, -1.0)
    kidney = trunk.ball(centre, (rng.uniform(42, 52), rng.uniform(23, 27)), axis)
    trunk.paint(kidney + 6, -105)
    trunk.paint(kidney, enhancement.kidney)
    pelvis = trunk.ball(np.add(centre, (-side * 12, 0, 0)), (20, 11), axis)
    trunk.paint(np.minimum(pelvis, kidney), -60)


def _paint_bones(trunk: Trunk, enhancement: Enhancement, rng: np.random.Generator) -> None:
    """Paint vertebrae, intervertebral discs, sacrum and iliac wings."""
    count = trunk.z / np.float32(rng.uniform(27, 31)) * (1 + trunk.z * np.float32(0.0005)) + np.float32(rng.random())
    level = np.abs(count - np.rint(count)) * 28
    column = np.float32(17) - np.sqrt((trunk.x / np.float32(1.18)) ** 2 + trunk.y**2)
    above_sacrum = trunk.z + np.float32(30)
    trunk.paint(np.minimum(column, above_sacrum), 85)
    body = np.minimum(np.minimum(column + 1.5, level - 3.5), above_sacrum)
    trunk.paint(body, enhancement.cortex)
    trunk.paint(body - 1.8, enhancement.marrow)
    canal = np.sqrt(trunk.x**2 + (trunk.y + np.float32(27)) ** 2)
    trunk.paint(np.minimum(np.float32(14) - canal, level - 4), 0.75 * enhancement.cortex)
    trunk.paint(np.float32(9) - canal, 25)
    thorn = np.minimum(4 - np.abs(trunk.x), 13 - np.abs(trunk.y + np.float32(53)))
    trunk.paint(np.minimum(thorn, level - 5), 0.75 * enhancement.cortex)
    bones = [trunk.ball((0, -22, -70), (42, 16, 44))]
    for side in (RIGHT, LEFT):
        bones.append(trunk.ball((side * rng.uniform(74, 82), 2, -62), (15, 46, 56)))
        bones.append(trunk.ball((side * rng.uniform(78, 84), 18, -128), (25, 25, 25)))
    for bone in bones:
        trunk.paint(bone, enhancement.cortex)
        trunk.paint(bone - 3, enhancement.marrow)


def _paint_veins(trunk: Trunk, places: Places, enhancement: Enhancement) -> None:
    """Paint the inferior vena cava with its veins, and the superior one."""
    cava, atrium = (21.0, 25.0), _right_atrium(places)
    rods: list[tuple[Point, Point, float]] = [
        ((*cava, -4.0), (*cava, places.celiac + 20), 10.5),
        ((*cava, places.celiac + 20), (atrium[0], atrium[1], atrium[2]), 11.5),
        ((*cava, 0.0), (50.0, 8.0, -95.0), 7.5),
        ((cava[0] - 3, cava[1] - 5, 0.0), (-42.0, 4.0, -95.0), 7.5),
    ]
    for side, hilum in zip((RIGHT, LEFT), places.kidneys, strict=True):
        end = (float(hilum[0]), float(hilum[1]) + 9, float(hilum[2]) + 4)
        before = (-10.0, 52.0, float(hilum[2]) + 3) if side == LEFT else end
        rods += [(end, before, 4.5)] if side == LEFT else []
        rods += [(before, (cava[0], cava[1] + 4, float(hilum[2]) + 6), 4.5)]
    for start, stop, radius in rods:
        trunk.paint(trunk.rod(start, stop, radius + 1.2), enhancement.muscle)
        trunk.paint(trunk.rod(start, stop, radius), enhancement.veins)
    superior = (40.0, places.root[1] - 4, places.top + 5)
    trunk.paint(trunk.rod(atrium, superior, 9.5), enhancement.cava_superior)
    trunk.paint(trunk.rod(superior, (-46, places.root[1] + 8, places.top + 26), 6.5), 0.8 * enhancement.cava_superior)


def _right_atrium(places: Places) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in places.root)
    return x + 34, y + 2, z - 30


def _paint_heart(trunk: Trunk, places: Places, enhancement: Enhancement, rng: np.random.Generator) -> None:
    """Paint four chambers and the pulmonary artery; the apex points left, the left atrium's roof is at T6."""
    root, fork = places.root, places.under_arch
    apex = np.array([-0.68, 0.52, -0.5]) + rng.normal(0, 0.06, 3)
    apex /= np.linalg.norm(apex)
    trunk.paint(trunk.ball(np.add(root, (-8, 12, -38)), (66, 48, 50)), -70)
    behind = np.array([2.0, max(places.at_t6[1] + 34, 0.5 * (places.at_t6[1] + root[1]) + 6), places.t6 - 20])
    trunk.paint(trunk.ball(behind, (32, 17, 22)), enhancement.muscle)
    trunk.paint(trunk.ball(behind, (30, 15, 20)), enhancement.left_heart)
    trunk.paint(trunk.ball(_right_atrium(places), (22, 24, 30)), 0.9 * enhancement.right_heart)
    chamber = trunk.ball(np.add(root, (2, 27, -36)), (38, 20, 30))
    outflow = trunk.rod(np.add(root, (-12, 27, -22)), np.add(fork, (-2, 4, -2)), 13)
    for margin_mm, hu in ((3, enhancement.muscle + 30), (0, enhancement.right_heart)):
        trunk.paint(chamber + margin_mm, hu)
        trunk.paint(outflow + margin_mm, hu)
    middle = root + apex * rng.uniform(36, 42)
    trunk.paint(trunk.ball(middle, (53, 33), apex), enhancement.muscle + rng.uniform(30, 70))
    trunk.paint(trunk.ball(middle, (43, rng.uniform(19, 24)), apex), enhancement.left_heart)
    for end in ((52, places.arch_end[1] + 26, fork[2] - 6), (-54, places.arch_end[1] + 20, fork[2] + 2)):
        trunk.paint(trunk.rod(fork, end, 10.5), enhancement.right_heart)


def _paint_airways(trunk: Trunk, places: Places) -> None:
    fork = np.array([6.0, places.arch_end[1] + 25, places.top - 34])
    ends = (np.add(fork, (4, -4, 90)), np.add(fork, (42, -6, -34)), np.add(fork, (-42, -8, -30)))
    for margin_mm, hu in ((1.8, 40), (0.0, -960)):
        for end, radius in zip(ends, (8.5, 6.5, 6.0), strict=True):
            trunk.paint(trunk.rod(fork, end, radius + margin_mm), hu)
