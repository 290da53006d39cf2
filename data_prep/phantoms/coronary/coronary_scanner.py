"""CT scanner of the coronary phantom: field of view, label and image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data_prep.phantoms.coronary.coronary_chest import (
    FAT_HU,
    CoronaryEnhancement,
    paint_chest,
    paint_great_vessel,
    rotate_to_patient,
)
from data_prep.phantoms.coronary.coronary_grid import (
    CoronaryGrid,
    blend,
    compute_distance,
    compute_share,
    compute_tube_share,
    paint,
)
from data_prep.phantoms.coronary.coronary_growth import Branch
from data_prep.phantoms.coronary.coronary_heart import CoronaryHeart, Tube
from data_prep.phantoms.coronary.coronary_lesions import Lesions, average_motion, paint_stent
from data_prep.phantoms.coronary.coronary_tree import left_tree
from data_prep.phantoms.scanner_noise import Field, draw_smooth_noise, round_to_hounsfield

SPACING_MM = (0.50, 0.60)
"""Range of a voxel's edges."""
WIDTHS = (3.1, 7.9)
"""Smallest and largest diameter of an artery, in voxels."""
_LIMIT_MM = 4.0


@dataclass(frozen=True)
class CtProtocol:
    """Settings of one case's scan.

    Args:
        blur_mm: standard deviation of the point spread function.
        noise_hu: standard deviation of the noise.
        texture_hu: standard deviation of the tissue texture.
        sheath_mm: thickness of the fat around an artery.
        artery_share: enhancement of the coronary arteries relative to the aorta's.
        calcium_hu: Hounsfield units of the plaques.
        bloom: share of a plaque's brightness in the halo around it.
    """

    blur_mm: float
    noise_hu: float
    texture_hu: float
    sheath_mm: float
    artery_share: float
    calcium_hu: float
    bloom: float


def draw_ct_protocol(rng: np.random.Generator) -> CtProtocol:
    """Draw reconstruction kernel, dose and contrast."""
    return CtProtocol(
        blur_mm=rng.uniform(0.30, 0.45),
        noise_hu=rng.uniform(14, 34),
        texture_hu=rng.uniform(4, 10),
        sheath_mm=rng.uniform(1.0, 2.2),
        artery_share=rng.uniform(0.9, 1.0),
        calcium_hu=rng.uniform(750, 1300),
        bloom=rng.uniform(0.2, 0.5),
    )


def draw_spacing(rng: np.random.Generator) -> tuple[float, float, float]:
    """Draw the spacing: square pixels and another distance of slices."""
    in_plane, through_plane = (round(float(mm), 4) for mm in rng.uniform(*SPACING_MM, 2))
    return in_plane, in_plane, through_plane


def draw_coronary_grid(
    branches: Sequence[Branch], spacing_mm: tuple[float, float, float], rng: np.random.Generator
) -> CoronaryGrid:
    """Draw a field of view around all arteries, with random margins."""
    points = np.concatenate([branch.centreline_mm for branch in branches])
    low = points.min(axis=0) - rng.uniform(5, 18, 3)
    high = points.max(axis=0) + rng.uniform(5, 18, 3)
    columns, rows, planes = (int(size) for size in np.ceil((high - low) / spacing_mm))
    return CoronaryGrid((columns, rows, planes), spacing_mm, (float(low[0]), float(low[1]), float(low[2])))


def draw_label(
    grid: CoronaryGrid, branches: Sequence[Branch], heart: CoronaryHeart
) -> tuple[NDArray[np.uint8], Field, Field]:
    """Label voxels whose centre is in an artery outside the aorta.

    Args:
        grid: the voxels.
        branches: arteries in the patient's frame.
        heart: the heart.

    Returns:
        The label, and signed distances to the walls of the left tree and of the other branches.
    """
    fillet_mm = 1.5 * max(grid.spacing_mm)
    left = left_tree(branches)
    fields = [
        compute_distance(
            grid,
            [Tube(each.centreline_mm, each.diameter_mm / 2) for each in branches if (each.name in left) is is_left],
            limit_mm=_LIMIT_MM,
            fillet_mm=fillet_mm,
        )
        for is_left in (True, False)
    ]
    aorta_mm = compute_distance(grid, [rotate_to_patient(heart.aorta, heart)], limit_mm=_LIMIT_MM)
    label = (np.minimum(*fields) < 0) & (aorta_mm > 0)
    return label.astype(np.uint8), fields[0], fields[1]


def scan_coronaries(
    grid: CoronaryGrid,
    heart: CoronaryHeart,
    distances_mm: tuple[Field, Field],
    enhancement: CoronaryEnhancement,
    lesions: Lesions,
    protocol: CtProtocol,
    rng: np.random.Generator,
) -> NDArray[np.int16]:
    """Scan a case, in Hounsfield units from -1024 to 3071."""
    hu = paint_chest(grid, heart, enhancement, rng)
    paint(hu, grid, (np.minimum(*distances_mm) - np.float32(protocol.sheath_mm), FAT_HU))
    paint_great_vessel(hu, grid, heart, heart.aorta, enhancement.arteries)
    for root, distance_mm in zip(("LM", "RCA"), distances_mm, strict=True):
        share = _smear_if_moving(compute_share(distance_mm, grid), root, lesions, grid)
        blend(hu, share, enhancement.arteries * protocol.artery_share)
    _paint_lesions(hu, grid, lesions, protocol)
    return _detect(hu, grid, protocol, rng)


def _paint_lesions(hu: Field, grid: CoronaryGrid, lesions: Lesions, protocol: CtProtocol) -> None:
    """Paint plaques and stents with blooming artefacts."""
    for name, plaque in lesions.plaques:
        box, share = compute_tube_share(grid, plaque)
        share = _smear_if_moving(share, name, lesions, grid)
        hu[box] += np.float32(protocol.bloom * protocol.calcium_hu) * _blur(share, 0.55, grid)
        blend(hu[box], share, protocol.calcium_hu)
    for name, struts in lesions.stents:
        metal = _smear_if_moving(paint_stent(grid, struts), name, lesions, grid)
        hu += np.float32(0.6) * metal
        hu += np.float32(0.4) * _blur(metal, 0.6, grid)


def _smear_if_moving(share: Field, name: str, lesions: Lesions, grid: CoronaryGrid) -> Field:
    """Smear a branch's share of each voxel if the branch moved."""
    return average_motion(share, lesions.motion_mm, grid) if name in lesions.moving else share


def _detect(hu: Field, grid: CoronaryGrid, protocol: CtProtocol, rng: np.random.Generator) -> NDArray[np.int16]:
    """Apply point spread, tissue texture and noise, and round to integers.

    The noise is band-pass filtered, like that of filtered back projection.
    """
    hu = _blur(hu, protocol.blur_mm, grid)
    patches = draw_smooth_noise(rng, grid.shape, 3, truncate=2.5)
    lung = 1 + 3 * (hu < -500)
    hu += patches * np.float32(protocol.texture_hu / patches.std()) * lung.astype(np.float32)
    white = rng.standard_normal(grid.shape, dtype=np.float32)
    fine, coarse = (ndimage.gaussian_filter(white, voxels, truncate=3) for voxels in (0.6, 1.5))
    grain = fine - np.float32(0.7) * coarse
    hu += grain * np.float32(protocol.noise_hu / grain.std())
    return round_to_hounsfield(hu, -1024, 3071)


def _blur(field: Field, deviation_mm: float, grid: CoronaryGrid) -> Field:
    return ndimage.gaussian_filter(field, np.divide(deviation_mm, grid.spacing_mm), truncate=3)
