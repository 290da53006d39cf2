"""Scanner of the coronary phantom: field of view, label, and image in Hounsfield units."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data_prep.phantoms.coronary.coronary_chest import FAT_HU, Enhancement, paint_aorta, paint_chest, to_patient
from data_prep.phantoms.coronary.coronary_grid import Field, Grid, blend, coverage, distance_to_tubes, share_of_tube
from data_prep.phantoms.coronary.coronary_growth import Branch
from data_prep.phantoms.coronary.coronary_heart import CoronaryHeart, Tube
from data_prep.phantoms.coronary.coronary_lesions import Lesions, moved, stent_hu
from data_prep.phantoms.coronary.coronary_tree import left_tree
from data_prep.phantoms.scanner_noise import draw_smooth_noise, to_hounsfield

SPACING_MM = (0.50, 0.60)
"""Range of a voxel's edges."""
WIDTHS = (3.1, 7.9)
"""Least and largest diameter of an artery, in voxels."""
_REACH_MM = 4.0


@dataclass(frozen=True)
class Protocol:
    """Settings of one case's scan.

    Args:
        blur_mm: standard deviation of the point spread.
        noise_hu: standard deviation of the noise.
        texture_hu: the same of the tissue's own unevenness.
        sheath_mm: fat around an artery.
        artery_share: enhancement of the coronary arteries over that of the aorta.
        calcium_hu: of the plaques.
        bloom: share of a plaque's brightness that is spread around it.
    """

    blur_mm: float
    noise_hu: float
    texture_hu: float
    sheath_mm: float
    artery_share: float
    calcium_hu: float
    bloom: float


def draw_protocol(rng: np.random.Generator) -> Protocol:
    """Draw a kernel from soft to sharp and a dose from high to low."""
    return Protocol(
        blur_mm=rng.uniform(0.30, 0.45),
        noise_hu=rng.uniform(14, 34),
        texture_hu=rng.uniform(4, 10),
        sheath_mm=rng.uniform(1.0, 2.2),
        artery_share=rng.uniform(0.9, 1.0),
        calcium_hu=rng.uniform(750, 1300),
        bloom=rng.uniform(0.2, 0.5),
    )


def draw_spacing(rng: np.random.Generator) -> tuple[float, float, float]:
    """Draw square pixels, and planes a little nearer or farther."""
    in_plane, through_plane = (round(float(mm), 4) for mm in rng.uniform(*SPACING_MM, 2))
    return in_plane, in_plane, through_plane


def draw_grid(branches: Sequence[Branch], spacing_mm: tuple[float, float, float], rng: np.random.Generator) -> Grid:
    """Draw a field of view that holds all arteries, anywhere in it."""
    points = np.concatenate([branch.centreline_mm for branch in branches])
    low = points.min(axis=0) - rng.uniform(5, 18, 3)
    high = points.max(axis=0) + rng.uniform(5, 18, 3)
    columns, rows, planes = (int(size) for size in np.ceil((high - low) / spacing_mm))
    return Grid((columns, rows, planes), spacing_mm, (float(low[0]), float(low[1]), float(low[2])))


def draw_label(grid: Grid, branches: Sequence[Branch], heart: CoronaryHeart) -> tuple[NDArray[np.uint8], Field, Field]:
    """Label voxels whose centre is in an artery and not in the aorta; give the distances, too.

    Returns:
        Label, distance to the wall of the trees that start with ``LM``, distance to that of the other ones; branches
        are in the patient's frame.
    """
    fillet_mm = 1.5 * max(grid.spacing_mm)
    left = left_tree(branches)
    fields = [
        distance_to_tubes(
            grid,
            [_tube(branch) for branch in branches if (branch.name in left) is own],
            reach_mm=_REACH_MM,
            fillet_mm=fillet_mm,
        )
        for own in (True, False)
    ]
    aorta_mm = distance_to_tubes(grid, [to_patient(heart.aorta, heart)], reach_mm=_REACH_MM)
    label = (np.minimum(*fields) < 0) & (aorta_mm > 0)
    return label.astype(np.uint8), fields[0], fields[1]


def scan(
    grid: Grid,
    heart: CoronaryHeart,
    distances_mm: tuple[Field, Field],
    enhancement: Enhancement,
    lesions: Lesions,
    protocol: Protocol,
    rng: np.random.Generator,
) -> NDArray[np.int16]:
    """Scan a case: an image in whole Hounsfield units from -1024 on."""
    hu = paint_chest(grid, heart, enhancement, rng)
    nearest_mm = np.minimum(*distances_mm)
    blend(hu, coverage(nearest_mm - np.float32(protocol.sheath_mm), grid), FAT_HU)
    paint_aorta(hu, grid, heart, enhancement)
    for root, distance_mm in zip(("LM", "RCA"), distances_mm, strict=True):
        share = _seen(coverage(distance_mm, grid), root, lesions, grid)
        blend(hu, share, enhancement.arteries * protocol.artery_share)
    _paint_lesions(hu, grid, lesions, protocol)
    return _detect(hu, grid, protocol, rng)


def in_patient(branches: Sequence[Branch], heart: CoronaryHeart) -> tuple[Branch, ...]:
    """Turn branches into the patient's frame."""
    return tuple(replace(branch, centreline_mm=branch.centreline_mm @ heart.to_patient.T) for branch in branches)


def _tube(branch: Branch) -> Tube:
    return Tube(branch.centreline_mm, branch.diameter_mm / 2)


def _paint_lesions(hu: Field, grid: Grid, lesions: Lesions, protocol: Protocol) -> None:
    """Paint calcium and metal, each with a halo: dense things look wider than they are."""
    for name, plaque in lesions.plaques:
        box, share = share_of_tube(grid, plaque)
        share = _seen(share, name, lesions, grid)
        hu[box] += np.float32(protocol.bloom * protocol.calcium_hu) * _spread(share, 0.55, grid)
        blend(hu[box], share, protocol.calcium_hu)
    for name, struts in lesions.stents:
        metal = _seen(stent_hu(grid, struts), name, lesions, grid)
        hu += np.float32(0.6) * metal
        hu += np.float32(0.4) * _spread(metal, 0.6, grid)


def _seen(share: Field, name: str, lesions: Lesions, grid: Grid) -> Field:
    """Share of a thing on a branch as the scanner sees it, smeared if the branch moved."""
    return moved(share, lesions.motion_mm, grid) if name in lesions.moving else share


def _detect(hu: Field, grid: Grid, protocol: Protocol, rng: np.random.Generator) -> NDArray[np.int16]:
    """Apply the point spread, uneven tissue, and noise as grainy as after filtered back projection."""
    hu = _spread(hu, protocol.blur_mm, grid)
    patches = draw_smooth_noise(rng, grid.shape, 3, truncate=2.5)
    lung = 1 + 3 * (hu < -500)
    hu += patches * np.float32(protocol.texture_hu / patches.std()) * lung.astype(np.float32)
    white = rng.standard_normal(grid.shape, dtype=np.float32)
    fine, coarse = (ndimage.gaussian_filter(white, voxels, truncate=3) for voxels in (0.6, 1.5))
    grain = fine - np.float32(0.7) * coarse
    hu += grain * np.float32(protocol.noise_hu / grain.std())
    return to_hounsfield(hu, -1024, 3071)


def _spread(field: Field, deviation_mm: float, grid: Grid) -> Field:
    return ndimage.gaussian_filter(field, np.divide(deviation_mm, grid.spacing_mm), truncate=3)
