"""Painting a plane of the phantom's heart: ventricles below the base, atria above it."""

import numpy as np
from numpy.typing import NDArray

from data_prep.phantoms.heart.heart_shape import Heart, Phase
from data_prep.phantoms.heart.heart_tissue import Tissue, Tissues

Millimetres = NDArray[np.float32]


def paint_heart(tissues: Tissues, u: Millimetres, v: Millimetres, z_mm: float, phase: Phase) -> None:
    """Paint one plane of the heart over what is there.

    Args:
        tissues: the plane, changed in place.
        u: septal coordinate of each point, from the long axis at the base.
        v: the coordinate across.
        z_mm: distance from the end-diastolic base, growing towards the apex.
        phase: the moment of the beat.
    """
    heart = phase.heart
    u = u - np.float32(heart.lean[0] * z_mm)
    v = v - np.float32(heart.lean[1] * z_mm)
    if z_mm < phase.base_mm:
        _paint_atria(tissues, u, v, phase)
    elif z_mm < phase.end_mm:
        _paint_right_ventricle(tissues, u, v, z_mm, phase)
        _paint_left_ventricle(tissues, u, v, z_mm, phase)


def _paint_left_ventricle(tissues: Tissues, u: Millimetres, v: Millimetres, z_mm: float, phase: Phase) -> None:
    heart = phase.heart
    depth = z_mm - phase.base_mm
    radius, direction = _polar(u, v)
    outer = phase.outer_radius_mm * _level(depth, phase.length_mm + phase.apex_wall_mm, heart.taper)
    outline = outer * _outline(direction, heart, scar=0.0)
    muscle = radius < outline
    tissues[muscle] = Tissue.MYOCARDIUM
    level = _level(depth, phase.length_mm, heart.taper)
    if level == 0:
        return
    radius_in, direction_in = _polar(u + np.float32(heart.septal_bulge_mm * level), v)
    cavity_outline = phase.cavity_radius_mm * level * _outline(direction_in, heart, scar=phase.scar)
    cavity = (radius_in < cavity_outline) & (radius < outline - np.float32(2.5))
    tissues[cavity] = Tissue.LV_BLOOD
    inner = phase.cavity_radius_mm * level
    if 0.15 < depth / phase.length_mm < 0.8:
        _paint_discs(tissues, u, v, cavity, heart.papillary, inner, distance=0.66, tissue=Tissue.PAPILLARY)
    _paint_discs(tissues, u, v, cavity, heart.trabeculae, inner, distance=0.97, tissue=Tissue.PAPILLARY)


def _paint_right_ventricle(tissues: Tissues, u: Millimetres, v: Millimetres, z_mm: float, phase: Phase) -> None:
    heart = phase.heart
    depth = z_mm - phase.base_mm
    outer = phase.outer_radius_mm * _level(depth, phase.length_mm + phase.apex_wall_mm, heart.taper)
    radius, direction = _polar(u, v)
    on_fatty_side = (direction * np.conj(np.complex64(heart.fat_direction))).real > 0
    tissues[on_fatty_side & (radius < outer + heart.fat_mm)] = Tissue.FAT
    level = _level(depth, heart.rv_reach * phase.length_mm, 2.8)
    if level == 0:
        return
    cavity, wall, fat = _crescent(u, v, outer, level, phase)
    tissues[fat] = Tissue.FAT
    tissues[wall] = Tissue.THIN_WALL
    tissues[cavity] = Tissue.RV_BLOOD
    turned = tuple((_towards_septum(place), size) for place, size in heart.trabeculae)
    reach = outer + phase.rv_depth_mm * level
    _paint_discs(tissues, u, v, cavity, turned, reach, distance=0.95, tissue=Tissue.RV_TRABECULA)


def _crescent(
    u: Millimetres, v: Millimetres, outer: float, level: float, phase: Phase
) -> tuple[NDArray[np.bool_], ...]:
    """Cavity, wall and covering fat of the right ventricle: ellipses that the left one will cut into a crescent."""
    heart = phase.heart
    near, far = 0.2 * outer, outer + phase.rv_depth_mm * level
    centre, half_depth = (near + far) / 2, (far - near) / 2
    half_width = outer * (0.45 + 0.62 * phase.rv_width * level)
    across = v - np.float32(heart.rv_tilt) * (u - np.float32(0.4 * outer))

    def ellipse(margin_mm: float) -> NDArray[np.bool_]:
        along = (u - np.float32(centre)) / np.float32(half_depth + margin_mm)
        beside = across / np.float32(half_width + margin_mm)
        return along * along + beside * beside < 1

    return ellipse(0.0), ellipse(heart.rv_wall_mm), ellipse(heart.rv_wall_mm + 0.8 * heart.fat_mm)


def _paint_atria(tissues: Tissues, u: Millimetres, v: Millimetres, phase: Phase) -> None:
    """Thin-walled atria and the aortic root: no thick ring and no crescent, so the base can be told from the image."""
    heart = phase.heart
    size = phase.outer_radius_mm * heart.atrium_size
    rooms = (
        (-0.35 * size, 0.1 * size, 0.75 * size, 1.0 * size, Tissue.ATRIUM),
        (0.95 * size + 0.4 * heart.rv_depth_mm, -0.35 * size, 0.75 * size, 0.8 * size, Tissue.ATRIUM),
        (0.55 * size, 0.85 * size, 0.45 * size, 0.45 * size, Tissue.VESSEL),
    )
    for margin_mm, covering in ((2.0 + heart.fat_mm, Tissue.FAT), (2.0, Tissue.THIN_WALL), (0.0, None)):
        for centre_u, centre_v, half_u, half_v, blood in rooms:
            along = (u - np.float32(centre_u)) / np.float32(half_u + margin_mm)
            across = (v - np.float32(centre_v)) / np.float32(half_v + margin_mm)
            tissues[along * along + across * across < 1] = blood if covering is None else covering


def _paint_discs(
    tissues: Tissues,
    u: Millimetres,
    v: Millimetres,
    room: NDArray[np.bool_],
    discs: tuple[tuple[complex, float], ...],
    reach_mm: float,
    *,
    distance: float,
    tissue: Tissue,
) -> None:
    for direction, size in discs:
        centre = direction * distance * reach_mm
        square = (u - np.float32(centre.real)) ** 2 + (v - np.float32(centre.imag)) ** 2
        tissues[room & (square < np.float32((size * reach_mm) ** 2))] = tissue


def _polar(u: Millimetres, v: Millimetres) -> tuple[Millimetres, NDArray[np.complex64]]:
    """Distance from the axis, and the direction as a unit complex number (its powers are the angle's harmonics)."""
    radius = np.sqrt(u * u + v * v) + np.float32(1e-3)
    direction = np.empty(u.shape, dtype=np.complex64)
    direction.real = u / radius
    direction.imag = v / radius
    return radius, direction


def _outline(direction: NDArray[np.complex64], heart: Heart, *, scar: float) -> NDArray[np.float32]:
    """Outline over its radius at each direction; its square has mean 1, so that it does not change the area."""
    around = np.exp(1j * np.linspace(0, 2 * np.pi, 256, endpoint=False)).astype(np.complex64)
    mean_square = np.mean(_unscaled_outline(around, heart, scar) ** 2)
    return _unscaled_outline(direction, heart, scar) / np.float32(mean_square**0.5)


def _unscaled_outline(direction: NDArray[np.complex64], heart: Heart, scar: float) -> NDArray[np.float32]:
    second, third = (np.complex64(amplitude) for amplitude in heart.harmonics)
    outline = 1 + ((third * direction + second) * direction * direction).real
    if scar:
        bump = np.exp(4 * ((direction * np.conj(np.complex64(heart.scar_direction))).real - 1))
        outline = outline + np.float32(scar) * bump
    return outline.astype(np.float32)


def _level(depth_mm: float, length_mm: float, taper: float) -> float:
    """Radius at a depth over the radius at the base; 0 from the apex on."""
    return max(0.0, 1 - (depth_mm / length_mm) ** taper) ** 0.5


def _towards_septum(direction: complex) -> complex:
    """Squeeze directions from all around into those that the right ventricle covers."""
    return complex(np.exp(0.35j * np.angle(direction)))
