"""Trunk around the phantom's heart: chest wall, lung and abdominal organs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.phantoms.heart.heart_tissue import Millimetres, Tissue, Tissues, is_in_ellipse

_ABDOMINAL = (Tissue.SPLEEN, Tissue.STOMACH, Tissue.FAT)


@dataclass(frozen=True)
class Organ:
    """Elliptic organ whose centre drifts with z.

    Args:
        tissue: filling of the ellipse.
        centre_mm: centre at z = 0.
        half_axes_mm: half axes of the ellipse.
        angle: rotation of the ellipse in radians.
        z_drift: drift of the centre in millimetres per millimetre of z.
        wall_mm: thickness of the wall; 0 for none.
    """

    tissue: Tissue
    centre_mm: tuple[float, float]
    half_axes_mm: tuple[float, float]
    angle: float
    z_drift: tuple[float, float]
    wall_mm: float = 0.0


@dataclass(frozen=True)
class Body:
    """Trunk of one patient.

    The origin of its frame is the heart; +x points to the back and +y to the lung.

    Args:
        front_mm: distance from the heart to the skin of the chest.
        back_mm: distance from the heart to the skin of the back.
        fat_mm: thickness of the subcutaneous fat.
        muscle_mm: thickness of the chest wall below the fat, which contains the ribs.
        rib_period_mm: distance between ribs.
        diaphragm_mm: height of the diaphragm at the heart's base.
        diaphragm_rise: rise of the diaphragm towards the apex, in millimetres per millimetre.
        waves: amplitude, wave numbers along x and y, z drift and phase of the waves that make outlines irregular.
        organs: organs in the order of painting.
    """

    front_mm: float
    back_mm: float
    fat_mm: float
    muscle_mm: float
    rib_period_mm: float
    diaphragm_mm: float
    diaphragm_rise: float
    waves: NDArray[np.float32]
    organs: tuple[Organ, ...]


def draw_body(rng: np.random.Generator, heart_radius_mm: float) -> Body:
    """Draw a trunk around a heart of a given radius."""
    waves = np.empty((6, 5), dtype=np.float32)
    waves[:, 0] = rng.uniform(0.8, 3.0, 6)
    wave_numbers = 2 * np.pi / rng.uniform(45, 110, 6) * np.exp(1j * rng.uniform(0, 2 * np.pi, 6))
    waves[:, 1], waves[:, 2] = wave_numbers.real, wave_numbers.imag
    waves[:, 3], waves[:, 4] = rng.normal(0, 2 * np.pi / 120, 6), rng.uniform(0, 2 * np.pi, 6)
    fat_mm, muscle_mm = rng.uniform(4, 22), rng.uniform(8, 16)
    return Body(
        front_mm=heart_radius_mm * rng.uniform(0.75, 1.1) + fat_mm + muscle_mm,
        back_mm=heart_radius_mm * rng.uniform(1.2, 1.6) + 60,
        fat_mm=fat_mm,
        muscle_mm=muscle_mm,
        rib_period_mm=rng.uniform(22, 34),
        diaphragm_mm=-heart_radius_mm * rng.uniform(0.3, 0.75),
        diaphragm_rise=rng.uniform(-0.05, 0.25),
        waves=waves,
        organs=(
            *_draw_abdominal_organs(rng, heart_radius_mm),
            *_draw_spine_and_aorta(rng, heart_radius_mm),
            *_draw_lung_vessels(rng),
        ),
    )


def paint_body(x: Millimetres, y: Millimetres, z_mm: float, body: Body) -> Tissues:
    """Paint one plane without the heart.

    Args:
        x: coordinate of each point towards the back.
        y: coordinate of each point towards the lung.
        z_mm: distance from the heart's base, positive towards the apex.
        body: the trunk.
    """
    x, y = _displace(x, y, z_mm, body.waves)
    tissues = np.full(x.shape, Tissue.AIR, dtype=np.uint8)
    depth = np.minimum(x + np.float32(body.front_mm), np.float32(body.back_mm) - x) - y * y * np.float32(4e-4)
    tissues[depth > 0] = Tissue.FAT
    tissues[depth > body.fat_mm] = Tissue.MUSCLE
    in_rib = np.sin(y * np.float32(2 * np.pi / body.rib_period_mm)) > 0.3
    ribs = in_rib & (np.abs(depth - np.float32(body.fat_mm + 0.5 * body.muscle_mm)) < 0.32 * body.muscle_mm)
    tissues[ribs] = Tissue.MARROW
    inside = depth > body.fat_mm + body.muscle_mm
    dome = np.float32(body.diaphragm_mm + body.diaphragm_rise * z_mm) - x * x * np.float32(2e-3)
    below = inside & (y < dome)
    tissues[inside] = Tissue.LUNG
    tissues[below] = Tissue.LIVER
    for organ in body.organs:
        in_lung = inside & ~below if organ.tissue is Tissue.VESSEL else inside
        region = below if organ.tissue in _ABDOMINAL else in_lung
        _paint_organ(tissues, x, y, z_mm, organ, region)
    return tissues


def _draw_abdominal_organs(rng: np.random.Generator, heart_radius_mm: float) -> list[Organ]:
    organs = []
    for number in range(rng.integers(8, 14)):
        centre = (rng.uniform(-80, 90), -heart_radius_mm * rng.uniform(0.4, 0.9) - rng.uniform(0, 80))
        half_axes = (rng.uniform(8, 32), rng.uniform(6, 22))
        tissue = _ABDOMINAL[number % len(_ABDOMINAL)]
        wall = rng.uniform(1.5, 3.5) if tissue is Tissue.STOMACH else 0.0
        organs.append(Organ(tissue, centre, half_axes, rng.uniform(0, np.pi), _draw_drift(rng, 0.3), wall))
    return organs


def _draw_spine_and_aorta(rng: np.random.Generator, heart_radius_mm: float) -> list[Organ]:
    behind = heart_radius_mm * rng.uniform(1.1, 1.3)
    aorta_mm, vertebra_mm, height = rng.uniform(8, 13), rng.uniform(15, 21), rng.uniform(-20, 40)
    vertebra = Organ(
        Tissue.MARROW, (behind + 35, height - 20), (vertebra_mm, vertebra_mm * 0.8), 0.0, _draw_drift(rng, 0.1), 2.0
    )
    aorta = Organ(Tissue.VESSEL, (behind + 14, height + 10), (aorta_mm, aorta_mm), 0.0, _draw_drift(rng, 0.1), 1.5)
    return [vertebra, aorta]


def _draw_lung_vessels(rng: np.random.Generator) -> list[Organ]:
    places = zip(rng.uniform(-70, 90, 28), rng.uniform(10, 130, 28), rng.uniform(1.2, 3.2, 28), strict=True)
    return [
        Organ(Tissue.VESSEL, (x, y), (radius * rng.uniform(1, 2), radius), rng.uniform(0, np.pi), _draw_drift(rng, 0.5))
        for x, y, radius in places
    ]


def _paint_organ(
    tissues: Tissues, x: Millimetres, y: Millimetres, z_mm: float, organ: Organ, region: NDArray[np.bool_]
) -> None:
    from_centre_x = x - np.float32(organ.centre_mm[0] + organ.z_drift[0] * z_mm)
    from_centre_y = y - np.float32(organ.centre_mm[1] + organ.z_drift[1] * z_mm)
    cosine, sine = np.float32(np.cos(organ.angle)), np.float32(np.sin(organ.angle))
    along = cosine * from_centre_x + sine * from_centre_y
    across = cosine * from_centre_y - sine * from_centre_x
    layers = ((organ.wall_mm, Tissue.THIN_WALL), (0.0, organ.tissue))
    for margin_mm, tissue in layers[organ.wall_mm <= 0 :]:
        tissues[is_in_ellipse(along, across, (0.0, 0.0), organ.half_axes_mm, margin_mm) & region] = tissue


def _displace(
    x: Millimetres, y: Millimetres, z_mm: float, waves: NDArray[np.float32]
) -> tuple[Millimetres, Millimetres]:
    """Displace points by a sum of sines, which makes ellipses irregular."""
    shift = np.zeros((2, *x.shape), dtype=np.float32)
    for number, (amplitude, along_x, along_y, along_z, start) in enumerate(waves):
        shift[number % 2] += amplitude * np.sin(along_x * x + along_y * y + (along_z * np.float32(z_mm) + start))
    return x + shift[0], y + shift[1]


def _draw_drift(rng: np.random.Generator, amplitude: float) -> tuple[float, float]:
    return rng.uniform(-amplitude, amplitude), rng.uniform(-amplitude, amplitude)
