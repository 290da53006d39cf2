"""Scanner of the aorta phantom: CT numbers and labels of a tree on a grid of 1 mm voxels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data_prep.phantoms.aorta.aorta_organs import Enhancement, Trunk, draw_enhancement, find_places, paint_trunk
from data_prep.phantoms.aorta.aorta_tubes import Grid, Tube, draw_tube, join, label_of
from data_prep.phantoms.aorta.aorta_vessels import Flap, Tree, Vessel
from data_prep.phantoms.curves import Points
from data_prep.phantoms.scanner_noise import draw_smooth_noise, to_hounsfield
from uumamba.types import LabelMap

LOWEST_HU, HIGHEST_HU = -1024, 1500
COARSE = 2
"""Voxels along the edge of a cube in which organs are painted; vessels are painted voxel by voxel."""
_TWIG_MM = 15.0


@dataclass(frozen=True)
class Exposure:
    """Settings of one subject's scan.

    Args:
        noise_hu: standard deviation of the noise.
        blur_mm: width of the point spread.
        texture_hu: unevenness of the tissues themselves.
        wall_mm: thickness of the arteries' walls, outside the label.
        fading: share of the aorta's enhancement that is lost from its highest to its lowest point.
        false_lumen: enhancement of the false lumen relative to the true one.
        calcifications: number of plaques in the aorta's wall.
    """

    noise_hu: float
    blur_mm: float
    texture_hu: float
    wall_mm: float
    fading: float
    false_lumen: float
    calcifications: int


def draw_exposure(rng: np.random.Generator) -> Exposure:
    """Draw an exposure from clean to noisy."""
    return Exposure(
        noise_hu=rng.uniform(8, 26),
        blur_mm=rng.uniform(0.45, 0.8),
        texture_hu=rng.uniform(5, 14),
        wall_mm=rng.uniform(1.0, 1.8),
        fading=rng.uniform(-0.1, 0.25),
        false_lumen=rng.uniform(0.35, 0.9),
        calcifications=int(rng.integers(0, 26)),
    )


def scan(tree: Tree, rng: np.random.Generator) -> tuple[NDArray[np.int16], LabelMap, Grid]:
    """Scan a subject: image in Hounsfield units and label, both ``(z, y, x)``, and their grid."""
    grid = draw_grid(tree, rng)
    exposure, enhancement = draw_exposure(rng), draw_enhancement(rng)
    tubes = [draw_tube(vessel, grid) for vessel in tree.vessels]
    union = join(tubes, grid.shape)
    label = label_of(tree, tubes, union)
    image = _scan_trunk(tree, grid, exposure, enhancement, rng)
    _paint_arteries(image, tree, tubes, union, grid, exposure, enhancement, rng)
    return _receive(image, exposure, rng), label, grid


def draw_grid(tree: Tree, rng: np.random.Generator) -> Grid:
    """Draw a field of view around the vessels, with random room on every side."""
    low, high = (
        bound([bound(v.points_mm - sign * v.radii_mm[:, None], axis=0) for v in tree.vessels], axis=0)
        for bound, sign in ((np.min, 1), (np.max, -1))
    )
    room = np.array([(12, 52), (10, 44), (4, 26)])
    low, high = low - rng.uniform(*room.T), high + rng.uniform(*room.T)
    x, y, z = (int(size) for size in np.ceil(high - low) + 1)
    return Grid((z, y, x), (round(high[0], 2), round(high[1], 2), round(low[2], 2)))


def _scan_trunk(
    tree: Tree, grid: Grid, exposure: Exposure, enhancement: Enhancement, rng: np.random.Generator
) -> NDArray[np.float32]:
    trunk = Trunk(grid.axes(step=COARSE), tree.pose, COARSE / tree.pose.scale, rng)
    paint_trunk(trunk, find_places(tree), enhancement, rng)
    grain = draw_smooth_noise(rng, trunk.hu.shape, 1.2)
    # Air has no texture.
    trunk.hu += grain * np.where(trunk.hu > -990, np.float32(exposure.texture_hu / grain.std()), np.float32(0))
    return np.ascontiguousarray(_refine(trunk.hu)[tuple(slice(size) for size in grid.shape)])


def _refine(coarse: NDArray[np.float32]) -> NDArray[np.float32]:
    """Double the resolution along every axis, linearly between the centres of coarse voxels."""
    for axis in range(3):
        before, after = (
            np.concatenate([coarse.take([edge], axis), part] if edge == 0 else [part, coarse.take([edge], axis)], axis)
            for edge, part in (
                (0, coarse.take(range(coarse.shape[axis] - 1), axis)),
                (-1, coarse.take(range(1, coarse.shape[axis]), axis)),
            )
        )
        near = np.float32(0.75) * coarse
        pair = np.stack([near + np.float32(0.25) * before, near + np.float32(0.25) * after], axis=axis + 1)
        coarse = pair.reshape([2 * size if at == axis else size for at, size in enumerate(coarse.shape)])
    return coarse


def _paint_arteries(
    image: NDArray[np.float32],
    tree: Tree,
    tubes: Sequence[Tube],
    union: NDArray[np.float32],
    grid: Grid,
    exposure: Exposure,
    enhancement: Enhancement,
    rng: np.random.Generator,
) -> None:
    twigs = [draw_tube(twig, grid) for vessel in tree.vessels[1:] for twig in _draw_twigs(vessel, rng)]
    depth = join([Tube(tree.vessels[0], (slice(None),) * 3, union, np.zeros(0, np.int16)), *twigs], grid.shape)
    near = np.nonzero(depth.ravel() > -exposure.wall_mm - 0.5)[0]
    voxels, here = image.ravel(), depth.ravel()[near]
    heights = grid.axes()[2].ravel()[near // (grid.shape[1] * grid.shape[2])]
    lowest, highest = (float(bound(tree.vessels[0].points_mm[:, 2])) for bound in (np.min, np.max))
    level = np.clip((highest - heights) / (highest - lowest), 0, 1.3)
    blood = np.float32(enhancement.aorta) * (1 - np.float32(exposure.fading) * level)
    _mix(voxels, near, here + np.float32(exposure.wall_mm), np.float32(45))
    _mix(voxels, near, here, blood)
    if tree.flap is not None:
        _paint_flap(image, tree.flap, tubes[0], union, grid, exposure)
    _paint_plaques(image, tree, union, grid, exposure, rng)


def _mix(
    voxels: NDArray[np.float32],
    places: NDArray[np.intp],
    depth_mm: NDArray[np.float32],
    hu: NDArray[np.float32] | np.float32,
) -> None:
    """Mix a tissue into voxels by the depth of their centres under its surface."""
    share = np.clip(depth_mm + np.float32(0.5), 0, 1)
    voxels[places] += share * (hu - voxels[places])


def _draw_twigs(vessel: Vessel, rng: np.random.Generator) -> list[Vessel]:
    """Draw the two thinner, unlabelled vessels into which a branch divides where its label ends."""
    end, heading, radius = vessel.points_mm[-1], vessel.tangents[-1], float(vessel.radii_mm[-1])
    sideways = np.cross(heading, rng.normal(size=3))
    sideways /= np.linalg.norm(sideways)
    twigs = []
    for side in (1, -1):
        direction = heading + side * rng.uniform(0.4, 0.8) * sideways
        direction /= np.linalg.norm(direction)
        points = end + np.arange(-1.0, _TWIG_MM)[:, None] * direction
        radii = np.full(len(points), radius * rng.uniform(0.42, 0.58))
        twigs.append(Vessel("Twig", vessel.name, points, radii, (), ()))
    return twigs


def _paint_flap(
    image: NDArray[np.float32], flap: Flap, tube: Tube, union: NDArray[np.float32], grid: Grid, exposure: Exposure
) -> None:
    """Paint the false lumen's own enhancement and the membrane."""
    arc = tube.vessel.arc_mm
    along = arc[tube.nearest]
    z, y, x = np.nonzero((tube.depth_mm > -0.5) & (along > flap.start_mm) & (along < flap.stop_mm))
    number = tube.nearest[z, y, x]
    centres, normals = tube.vessel.points_mm[number], _flap_normals(flap, tube.vessel)[number]
    places = zip(grid.axes(tube.box), (x, y, z), range(3), strict=True)
    across = sum((axis.ravel()[at] - centres[:, way]) * normals[:, way] for axis, at, way in places)
    from_end = np.minimum(arc[number] - flap.start_mm, flap.stop_mm - arc[number])
    radii = tube.vessel.radii_mm[number]
    at_wall = np.exp(-from_end / 8.0)
    plane = radii * (flap.offset + (1.0 - flap.offset) * at_wall)
    beyond = (across - plane).astype(np.float32)
    window = image[tube.box]
    voxels, inside = window[z, y, x], np.clip(tube.depth_mm[z, y, x] + np.float32(0.5), 0, 1)
    false_share = inside * np.clip(beyond + np.float32(0.5), 0, 1)
    voxels = voxels + false_share * (np.float32(exposure.false_lumen) - 1) * voxels
    in_flap = inside * np.clip(np.float32(flap.thickness_mm / 2 + 0.5) - np.abs(beyond), 0, 1)
    window[z, y, x] = voxels + in_flap * (50 - voxels)


def _flap_normals(flap: Flap, aorta: Vessel) -> Points:
    """Unit normal of the membrane at every point of the centreline, in a frame without twist of its own."""
    tangents = aorta.tangents
    frame = np.empty_like(tangents)
    frame[0] = np.cross(tangents[0], (0.0, 1.0, 0.0))
    for number in range(len(tangents)):
        carried = frame[max(number - 1, 0)]
        carried = carried - (carried @ tangents[number]) * tangents[number]
        frame[number] = carried / np.linalg.norm(carried)
    angle = (flap.angle + flap.twist * (aorta.arc_mm - flap.start_mm))[:, None]
    return np.cos(angle) * frame + np.sin(angle) * np.cross(tangents, frame)


def _paint_plaques(
    image: NDArray[np.float32],
    tree: Tree,
    union: NDArray[np.float32],
    grid: Grid,
    exposure: Exposure,
    rng: np.random.Generator,
) -> None:
    """Paint calcium in the wall, mostly in the abdomen, reaching a little into the lumen."""
    aorta = tree.vessels[0]
    for _ in range(exposure.calcifications):
        number = int((len(aorta.points_mm) - 1) * rng.uniform(0.25, 1.0) ** 0.7)
        way = np.cross(aorta.tangents[number], rng.normal(size=3))
        centre = aorta.points_mm[number] + aorta.radii_mm[number] * way / np.linalg.norm(way)
        radius, hu = rng.uniform(1.5, 4.5), rng.uniform(450, 1100)
        box = grid.box_around(centre[None], radius + 1)
        x, y, z = (axis - np.float32(m) for axis, m in zip(grid.axes(box), centre, strict=True))
        depth = np.float32(radius) - np.sqrt(x * x + y * y + z * z)
        depth = np.minimum(depth, np.float32(1.2) - np.abs(union[box]))
        image[box] += np.clip(depth + np.float32(0.5), 0, 1) * (np.float32(hu) - image[box])


def _receive(image: NDArray[np.float32], exposure: Exposure, rng: np.random.Generator) -> NDArray[np.int16]:
    """Apply the point spread and slightly smoothed noise, and round to whole Hounsfield units."""
    image = ndimage.gaussian_filter(image, exposure.blur_mm, truncate=3.0)
    noise = draw_smooth_noise(rng, image.shape, (0.4, 0.6, 0.6), truncate=3.0)
    image += noise * np.float32(exposure.noise_hu / noise[: min(40, len(noise))].std())
    return to_hounsfield(image, LOWEST_HU, HIGHEST_HU)
