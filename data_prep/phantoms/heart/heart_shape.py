"""Shape of the phantom's heart: two ventricles, their sizes by diagnosis and over a beat."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Habit:
    """Typical ejection fractions (0 to 1) and end-diastolic sizes of a diagnosis."""

    lv_ejection: float
    lv_ejection_sd: float
    rv_ejection: float
    lv_radius_mm: float
    wall_mm: float
    lv_length_mm: float
    rv_depth_mm: float
    septal_bulge_mm: float = 0.0
    scar: float = 0.0
    septal_flattening: float = 0.0


HABITS: Mapping[str, Habit] = {
    "NOR": Habit(0.62, 0.04, 0.55, 23.0, 8.5, 80.0, 31.0),
    "DCM": Habit(0.20, 0.05, 0.35, 32.0, 8.5, 90.0, 28.0),
    "HCM": Habit(0.70, 0.05, 0.60, 23.5, 13.0, 78.0, 26.0, septal_bulge_mm=3.0),
    "MINF": Habit(0.31, 0.05, 0.50, 27.0, 9.0, 84.0, 27.0, scar=0.12),
    "RV": Habit(0.56, 0.04, 0.33, 21.0, 7.5, 76.0, 43.0, septal_flattening=0.07),
}


@dataclass(frozen=True)
class Heart:
    """One patient's heart at end diastole; its frame has the middle of the base as origin and +u towards the septum.

    Outlines are ``radius * level(z) * (1 + harmonics(angle))``, ``level`` falling from 1 at the base to 0 at the apex
    as ``(1 - (z / length) ** taper) ** 0.5``, so that a cavity's volume is ``pi radius^2 length taper / (taper + 1)``.
    ``harmonics`` are the complex amplitudes of orders 2 and 3 of the angle.
    """

    habit: Habit
    lv_ejection: float
    rv_ejection: float
    lv_radius_mm: float
    wall_mm: float
    lv_length_mm: float
    rv_depth_mm: float
    rv_width: float
    rv_reach: float
    rv_wall_mm: float
    rv_tilt: float
    taper: float
    harmonics: tuple[complex, complex]
    scar_direction: complex
    septal_bulge_mm: float
    lean: tuple[float, float]
    papillary: tuple[tuple[complex, float], ...]
    trabeculae: tuple[tuple[complex, float], ...]
    fat_direction: complex
    fat_mm: float
    atrium_size: float


@dataclass(frozen=True)
class Phase:
    """Sizes that change over the beat; ``base_mm`` is how far the base has moved towards the apex."""

    heart: Heart
    base_mm: float
    length_mm: float
    cavity_radius_mm: float
    outer_radius_mm: float
    apex_wall_mm: float
    rv_depth_mm: float
    rv_width: float
    scar: float

    @property
    def end_mm(self) -> float:
        """End of the apex's muscle."""
        return self.base_mm + self.length_mm + self.apex_wall_mm


def draw_heart(group: str, rng: np.random.Generator) -> Heart:
    """Draw a heart of a diagnosis; size varies by a factor of 0.82 to 1.22, every proportion on its own.

    A length beyond 100 mm is cut to it: 12 slices of 10 mm hold no longer heart.
    """
    habit = HABITS[group]
    size = rng.uniform(0.82, 1.22)
    flattening = -habit.septal_flattening * rng.uniform(0.6, 1.4)
    return Heart(
        habit=habit,
        lv_ejection=float(np.clip(rng.normal(habit.lv_ejection, habit.lv_ejection_sd), 0.08, 0.82)),
        rv_ejection=float(np.clip(rng.normal(habit.rv_ejection, 0.05), 0.15, 0.70)),
        lv_radius_mm=habit.lv_radius_mm * size * rng.uniform(0.92, 1.08),
        wall_mm=habit.wall_mm * size**0.5 * rng.uniform(0.85, 1.15),
        lv_length_mm=min(100.0, habit.lv_length_mm * size * rng.uniform(0.9, 1.1)),
        rv_depth_mm=habit.rv_depth_mm * size * rng.uniform(0.8, 1.2),
        rv_width=rng.uniform(0.95, 1.25),
        rv_reach=rng.uniform(0.78, 0.93),
        rv_wall_mm=rng.uniform(2.0, 3.2),
        rv_tilt=rng.uniform(-0.35, 0.35),
        taper=rng.uniform(2.0, 3.2),
        harmonics=(flattening + _small(rng, 0.05), _small(rng, 0.025)),
        scar_direction=_direction(rng.uniform(-np.pi, np.pi)),
        septal_bulge_mm=habit.septal_bulge_mm * rng.uniform(0.4, 1.4),
        lean=(rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2)),
        papillary=tuple((_direction(angle + rng.normal(0, 0.25)), rng.uniform(0.15, 0.24)) for angle in (2.1, -2.1)),
        trabeculae=tuple((_direction(rng.uniform(-np.pi, np.pi)), rng.uniform(0.05, 0.10)) for _ in range(5)),
        fat_direction=_direction(rng.uniform(-0.9, 0.9)),
        fat_mm=rng.uniform(1.0, 7.0),
        atrium_size=rng.uniform(0.75, 1.0),
    )


def end_diastole(heart: Heart) -> Phase:
    """The relaxed heart."""
    return Phase(
        heart=heart,
        base_mm=0.0,
        length_mm=heart.lv_length_mm,
        cavity_radius_mm=heart.lv_radius_mm,
        outer_radius_mm=heart.lv_radius_mm + heart.wall_mm,
        apex_wall_mm=0.7 * heart.wall_mm,
        rv_depth_mm=heart.rv_depth_mm,
        rv_width=heart.rv_width,
        scar=heart.habit.scar,
    )


def end_systole(heart: Heart) -> Phase:
    """The contracted heart: the cavity loses its ejection fraction, the muscle keeps its volume and thickens.

    The base comes down towards the apex by up to a fifth of the length, which takes the most basal slices out of the
    ventricles, as in patients.
    """
    relaxed = end_diastole(heart)
    length = relaxed.length_mm * (1 - 0.24 * heart.lv_ejection)
    cavity = relaxed.cavity_radius_mm**2 * relaxed.length_mm * (1 - heart.lv_ejection)
    muscle = relaxed.outer_radius_mm**2 * (relaxed.length_mm + relaxed.apex_wall_mm)
    muscle -= relaxed.cavity_radius_mm**2 * relaxed.length_mm
    apex_wall = relaxed.apex_wall_mm * 1.2
    outer_radius = ((cavity + muscle) / (length + apex_wall)) ** 0.5
    depth = relaxed.outer_radius_mm + relaxed.rv_depth_mm * (1 - 0.75 * heart.rv_ejection) - outer_radius
    return Phase(
        heart=heart,
        base_mm=relaxed.length_mm - length,
        length_mm=length,
        cavity_radius_mm=(cavity / length) ** 0.5,
        outer_radius_mm=outer_radius,
        apex_wall_mm=apex_wall,
        rv_depth_mm=max(depth, 0.25 * relaxed.rv_depth_mm),
        rv_width=relaxed.rv_width * (1 - 0.25 * heart.rv_ejection),
        scar=relaxed.scar * 1.5,
    )


def extent_mm(heart: Heart) -> tuple[float, float]:
    """Radius of the circle that holds the heart at its base, and the ``u`` of its centre."""
    outer = (heart.lv_radius_mm + heart.wall_mm) * 1.06
    septal_end = outer + heart.rv_depth_mm + heart.rv_wall_mm
    return (septal_end + outer) / 2, (septal_end - outer) / 2


def _direction(angle: float) -> complex:
    return complex(np.cos(angle), np.sin(angle))


def _small(rng: np.random.Generator, amplitude: float) -> complex:
    return rng.uniform(0, amplitude) * _direction(rng.uniform(-np.pi, np.pi))
