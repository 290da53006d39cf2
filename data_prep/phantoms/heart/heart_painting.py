"""Planes of the phantom's heart: ventricles below the base, atria above it."""

import numpy as np
from numpy.typing import NDArray

from data_prep.phantoms.heart.heart_shape import Heart, Phase
from data_prep.phantoms.heart.heart_tissue import Millimetres, Tissue, Tissues, is_in_ellipse


def paint_heart(tissues: Tissues, u: Millimetres, v: Millimetres, z_mm: float, phase: Phase) -> None:
    """Paint one plane of the heart over the surrounding tissues.

    Args:
        tissues: the plane, changed in place.
        u: coordinate of each point towards the septum, 0 on the long axis at the base.
        v: coordinate of each point perpendicular to ``u``.
        z_mm: distance from the end-diastolic base, positive towards the apex.
        phase: end-diastole or end-systole.
    """
    heart = phase.heart
    u = u - np.float32(heart.lean[0] * z_mm)
    v = v - np.float32(heart.lean[1] * z_mm)
    if z_mm < phase.base_mm:
        _paint_atria(tissues, u, v, phase)
    elif z_mm < phase.end_mm:
        depth = z_mm - phase.base_mm
        outer = phase.outer_radius_mm * _compute_relative_radius(
            depth, phase.length_mm + phase.apex_wall_mm, heart.taper
        )
        _paint_right_ventricle(tissues, u, v, depth, outer, phase)
        _paint_left_ventricle(tissues, u, v, depth, outer, phase)


def _paint_left_ventricle(
    tissues: Tissues, u: Millimetres, v: Millimetres, depth: float, outer: float, phase: Phase
) -> None:
    heart = phase.heart
    radius, direction = _convert_to_polar(u, v)
    outline = outer * _compute_outline(direction, heart, scar=0.0)
    tissues[radius < outline] = Tissue.MYOCARDIUM
    level = _compute_relative_radius(depth, phase.length_mm, heart.taper)
    if level == 0:
        return
    inner = phase.cavity_radius_mm * level
    radius_in, direction_in = _convert_to_polar(u + np.float32(heart.septal_bulge_mm * level), v)
    cavity = radius_in < inner * _compute_outline(direction_in, heart, scar=phase.scar)
    cavity &= radius < outline - np.float32(2.5)
    tissues[cavity] = Tissue.LV_BLOOD
    if 0.15 < depth / phase.length_mm < 0.8:
        _paint_discs(tissues, u, v, cavity, heart.papillary, inner, distance=0.66, tissue=Tissue.PAPILLARY)
    _paint_discs(tissues, u, v, cavity, heart.trabeculae, inner, distance=0.97, tissue=Tissue.PAPILLARY)


def _paint_right_ventricle(
    tissues: Tissues, u: Millimetres, v: Millimetres, depth: float, outer: float, phase: Phase
) -> None:
    """Paint cavity, wall and epicardial fat of the right ventricle.

    They are ellipses, of which the left ventricle, painted later, leaves a crescent.
    """
    heart = phase.heart
    radius, direction = _convert_to_polar(u, v)
    on_fatty_side = (direction * np.conj(np.complex64(heart.fat_direction))).real > 0
    tissues[on_fatty_side & (radius < outer + heart.fat_mm)] = Tissue.FAT
    level = _compute_relative_radius(depth, heart.rv_length * phase.length_mm, 2.8)
    if level == 0:
        return
    near, far = 0.2 * outer, outer + phase.rv_depth_mm * level
    half_axes = (far - near) / 2, outer * (0.45 + 0.62 * phase.rv_width * level)
    across = v - np.float32(heart.rv_tilt) * (u - np.float32(0.4 * outer))
    layers = (
        (heart.rv_wall_mm + 0.8 * heart.fat_mm, Tissue.FAT),
        (heart.rv_wall_mm, Tissue.THIN_WALL),
        (0.0, Tissue.RV_BLOOD),
    )
    for margin_mm, tissue in layers:
        cavity = is_in_ellipse(u, across, ((near + far) / 2, 0.0), half_axes, margin_mm)
        tissues[cavity] = tissue
    # Directions of the full circle are compressed to those of the right ventricle.
    turned = tuple((complex(np.exp(0.35j * np.angle(place))), size) for place, size in heart.trabeculae)
    _paint_discs(tissues, u, v, cavity, turned, far, distance=0.95, tissue=Tissue.RV_TRABECULA)


def _paint_atria(tissues: Tissues, u: Millimetres, v: Millimetres, phase: Phase) -> None:
    """Paint atria and aortic root.

    Without a thick ring or a crescent, they make the heart's base visible in the image.
    """
    heart = phase.heart
    size = phase.outer_radius_mm * heart.atrium_size
    chambers = (
        ((-0.35 * size, 0.1 * size), (0.75 * size, 1.0 * size), Tissue.ATRIUM),
        ((0.95 * size + 0.4 * heart.rv_depth_mm, -0.35 * size), (0.75 * size, 0.8 * size), Tissue.ATRIUM),
        ((0.55 * size, 0.85 * size), (0.45 * size, 0.45 * size), Tissue.VESSEL),
    )
    for margin_mm, covering in ((2.0 + heart.fat_mm, Tissue.FAT), (2.0, Tissue.THIN_WALL), (0.0, None)):
        for centre, half_axes, blood in chambers:
            tissues[is_in_ellipse(u, v, centre, half_axes, margin_mm)] = blood if covering is None else covering


def _paint_discs(
    tissues: Tissues,
    u: Millimetres,
    v: Millimetres,
    region: NDArray[np.bool_],
    discs: tuple[tuple[complex, float], ...],
    radius_mm: float,
    *,
    distance: float,
    tissue: Tissue,
) -> None:
    for direction, size in discs:
        centre = direction * distance * radius_mm
        square = (u - np.float32(centre.real)) ** 2 + (v - np.float32(centre.imag)) ** 2
        tissues[region & (square < np.float32((size * radius_mm) ** 2))] = tissue


def _convert_to_polar(u: Millimetres, v: Millimetres) -> tuple[Millimetres, NDArray[np.complex64]]:
    """Convert points to distance from the axis and unit complex direction.

    The powers of the direction are the harmonics of the angle.
    """
    radius = np.sqrt(u * u + v * v) + np.float32(1e-3)
    direction = np.empty(u.shape, dtype=np.complex64)
    direction.real = u / radius
    direction.imag = v / radius
    return radius, direction


def _compute_outline(direction: NDArray[np.complex64], heart: Heart, *, scar: float) -> NDArray[np.float32]:
    """Compute the relative radius of an outline in each direction.

    Its mean square is 1, which preserves the area.
    """
    around = np.exp(1j * np.linspace(0, 2 * np.pi, 256, endpoint=False)).astype(np.complex64)
    mean_square = np.mean(_compute_unscaled_outline(around, heart, scar) ** 2)
    return _compute_unscaled_outline(direction, heart, scar) / np.float32(mean_square**0.5)


def _compute_unscaled_outline(direction: NDArray[np.complex64], heart: Heart, scar: float) -> NDArray[np.float32]:
    second, third = (np.complex64(amplitude) for amplitude in heart.harmonics)
    outline = 1 + ((third * direction + second) * direction * direction).real
    if scar:
        bump = np.exp(4 * ((direction * np.conj(np.complex64(heart.scar_direction))).real - 1))
        outline = outline + np.float32(scar) * bump
    return outline.astype(np.float32)


def _compute_relative_radius(depth_mm: float, length_mm: float, taper: float) -> float:
    """Compute the radius at a depth relative to the base.

    It is 0 at the apex and beyond.
    """
    return max(0.0, 1 - (depth_mm / length_mm) ** taper) ** 0.5
