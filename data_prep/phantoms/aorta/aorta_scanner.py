"""CT scanner of the aorta phantom, with voxels of 1 mm."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data_prep.phantoms.aorta.aorta_organs import (
    AortaEnhancement,
    Trunk,
    draw_aorta_enhancement,
    find_places,
    paint_trunk,
)
from data_prep.phantoms.aorta.aorta_tubes import AortaGrid, VesselDepth, compute_depth, join_depths, label_vessels
from data_prep.phantoms.aorta.aorta_vessels import Flap, Tree, Vessel
from data_prep.phantoms.curves import Points
from data_prep.phantoms.scanner_noise import Field, draw_smooth_noise, round_to_hounsfield
from uumamba.types import LabelMap

LOWEST_HU, HIGHEST_HU = -1024, 1500
COARSE = 2
"""Edge in voxels of the coarse cubes that organs are painted in; vessels are painted at full resolution."""
_TWIG_MM = 15.0


@dataclass(frozen=True)
class Exposure:
    """Settings of one subject's scan.

    Args:
        noise_hu: standard deviation of the noise.
        blur_mm: standard deviation of the point spread function.
        texture_hu: standard deviation of the tissue texture.
        wall_mm: thickness of the arterial walls, outside the label.
        fading: share of the aorta's enhancement lost from its highest to its lowest point.
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


def scan_aorta(tree: Tree, rng: np.random.Generator) -> tuple[NDArray[np.int16], LabelMap, AortaGrid]:
    """Scan a subject.

    Returns:
        The image in Hounsfield units and the label, both ``(z, y, x)``, and their grid.
    """
    grid = draw_aorta_grid(tree, rng)
    exposure, enhancement = draw_exposure(rng), draw_aorta_enhancement(rng)
    tubes = [compute_depth(vessel, grid) for vessel in tree.vessels]
    union = join_depths(tubes, grid.shape)
    label = label_vessels(tree, tubes, union)
    image = _scan_trunk(tree, grid, exposure, enhancement, rng)
    _paint_arteries(image, tree, tubes, union, grid, exposure, enhancement, rng)
    return _detect(image, exposure, rng), label, grid


def draw_aorta_grid(tree: Tree, rng: np.random.Generator) -> AortaGrid:
    """Draw a field of view around the vessels, with random margins."""
    low, high = (
        bound([bound(v.points_mm - sign * v.radii_mm[:, None], axis=0) for v in tree.vessels], axis=0)
        for bound, sign in ((np.min, 1), (np.max, -1))
    )
    margins_mm = np.array([(12, 52), (10, 44), (4, 26)])
    low, high = low - rng.uniform(*margins_mm.T), high + rng.uniform(*margins_mm.T)
    x, y, z = (int(size) for size in np.ceil(high - low) + 1)
    return AortaGrid((z, y, x), (round(high[0], 2), round(high[1], 2), round(low[2], 2)))


def _scan_trunk(
    tree: Tree, grid: AortaGrid, exposure: Exposure, enhancement: AortaEnhancement, rng: np.random.Generator
) -> Field:
    trunk = Trunk(grid.axes(step=COARSE), tree.pose, COARSE / tree.pose.scale, rng)
    paint_trunk(trunk, find_places(tree), enhancement, rng)
    grain = draw_smooth_noise(rng, trunk.hu.shape, 1.2)
    # Air has no texture.
    trunk.hu += grain * np.where(trunk.hu > -990, np.float32(exposure.texture_hu / grain.std()), np.float32(0))
    return np.ascontiguousarray(_upsample(trunk.hu)[tuple(slice(size) for size in grid.shape)])


def _upsample(coarse: Field) -> Field:
    """Double the resolution along every axis by linear interpolation."""
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
    image: Field,
    tree: Tree,
    tubes: Sequence[VesselDepth],
    union: Field,
    grid: AortaGrid,
    exposure: Exposure,
    enhancement: AortaEnhancement,
    rng: np.random.Generator,
) -> None:
    twigs = [compute_depth(twig, grid) for vessel in tree.vessels[1:] for twig in _draw_twigs(vessel, rng)]
    labelled = VesselDepth(tree.vessels[0], (slice(None),) * 3, union, np.zeros(0, np.int16))
    depth = join_depths([labelled, *twigs], grid.shape)
    near = np.nonzero(depth.ravel() > -exposure.wall_mm - 0.5)[0]
    voxels, here = image.ravel(), depth.ravel()[near]
    heights = grid.axes()[2].ravel()[near // (grid.shape[1] * grid.shape[2])]
    lowest, highest = (float(bound(tree.vessels[0].points_mm[:, 2])) for bound in (np.min, np.max))
    level = np.clip((highest - heights) / (highest - lowest), 0, 1.3)
    blood = np.float32(enhancement.aorta) * (1 - np.float32(exposure.fading) * level)
    _blend(voxels, near, here + np.float32(exposure.wall_mm), np.float32(45))
    _blend(voxels, near, here, blood)
    if tree.flap is not None:
        _paint_flap(image, tree.flap, tubes[0], union, grid, exposure)
    _paint_plaques(image, tree, union, grid, exposure, rng)


def _blend(
    voxels: Field,
    places: NDArray[np.intp],
    depth_mm: Field,
    hu: Field | np.float32,
) -> None:
    """Blend a tissue into voxels.

    Args:
        voxels: image, flattened, changed in place.
        places: indices of the voxels.
        depth_mm: depth of the voxels' centres under the tissue's surface.
        hu: Hounsfield units of the tissue.
    """
    share = np.clip(depth_mm + np.float32(0.5), 0, 1)
    voxels[places] += share * (hu - voxels[places])


def _draw_twigs(vessel: Vessel, rng: np.random.Generator) -> list[Vessel]:
    """Draw the two thinner, unlabelled vessels at the end of a branch."""
    end, heading, radius = vessel.points_mm[-1], vessel.tangents[-1], float(vessel.radii_mm[-1])
    sideways = np.cross(heading, rng.normal(size=3))
    sideways /= np.linalg.norm(sideways)
    twigs = []
    for side in (1, -1):
        direction = heading + side * rng.uniform(0.4, 0.8) * sideways
        direction /= np.linalg.norm(direction)
        points = end + np.arange(-1.0, _TWIG_MM)[:, None] * direction
        twigs.append(
            Vessel("Twig", vessel.name, points, np.full(len(points), radius * rng.uniform(0.42, 0.58)), (), ())
        )
    return twigs


def _paint_flap(image: Field, flap: Flap, tube: VesselDepth, union: Field, grid: AortaGrid, exposure: Exposure) -> None:
    """Paint the false lumen and the membrane of a dissection."""
    arc = tube.vessel.arc_mm
    along = arc[tube.nearest]
    z, y, x = np.nonzero((tube.depth_mm > -0.5) & (along > flap.start_mm) & (along < flap.stop_mm))
    number = tube.nearest[z, y, x]
    centres, normals = tube.vessel.points_mm[number], _compute_flap_normals(flap, tube.vessel)[number]
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


def _compute_flap_normals(flap: Flap, aorta: Vessel) -> Points:
    """Compute the membrane's unit normal at every point of the centreline.

    Its angle is measured in a parallel-transport frame, which does not twist.
    """
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
    image: Field,
    tree: Tree,
    union: Field,
    grid: AortaGrid,
    exposure: Exposure,
    rng: np.random.Generator,
) -> None:
    """Paint calcified plaques in the aorta's wall, mostly in the abdomen."""
    aorta = tree.vessels[0]
    for _ in range(exposure.calcifications):
        number = int((len(aorta.points_mm) - 1) * rng.uniform(0.25, 1.0) ** 0.7)
        way = np.cross(aorta.tangents[number], rng.normal(size=3))
        centre = aorta.points_mm[number] + aorta.radii_mm[number] * way / np.linalg.norm(way)
        radius, hu = rng.uniform(1.5, 4.5), rng.uniform(450, 1100)
        box = grid.bounding_box(centre[None], radius + 1)
        x, y, z = (axis - np.float32(m) for axis, m in zip(grid.axes(box), centre, strict=True))
        depth = np.float32(radius) - np.sqrt(x * x + y * y + z * z)
        depth = np.minimum(depth, np.float32(1.2) - np.abs(union[box]))
        image[box] += np.clip(depth + np.float32(0.5), 0, 1) * (np.float32(hu) - image[box])


def _detect(image: Field, exposure: Exposure, rng: np.random.Generator) -> NDArray[np.int16]:
    """Apply point spread and noise, and round to integers."""
    image = ndimage.gaussian_filter(image, exposure.blur_mm, truncate=3.0)
    noise = draw_smooth_noise(rng, image.shape, (0.4, 0.6, 0.6), truncate=3.0)
    image += noise * np.float32(exposure.noise_hu / noise[: min(40, len(noise))].std())
    return round_to_hounsfield(image, LOWEST_HU, HIGHEST_HU)
