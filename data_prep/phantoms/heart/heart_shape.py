"""Shape of the phantom's ventricles, by diagnosis and phase."""

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
    """One patient's heart at end-diastole.

    The origin of its frame is the centre of the base; +u points to the septum. Outlines are
    ``radius * level(z) * (1 + harmonics(angle))``, where ``level`` decreases from 1 at the base to 0 at the apex as
    ``(1 - (z / length) ** taper) ** 0.5``: a cavity's volume is ``pi radius^2 length taper / (taper + 1)``.
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
    rv_length: float
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
    """Sizes that change over the cardiac cycle.

    ``base_mm`` is the displacement of the base towards the apex.
    """

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
        """Position of the outer apex along the long axis."""
        return self.base_mm + self.length_mm + self.apex_wall_mm


def draw_heart(group: str, rng: np.random.Generator) -> Heart:
    """Draw a heart of a diagnosis.

    Size varies by a factor of 0.82 to 1.22, and proportions vary independently. The length is limited to 100 mm, since
    12 slices of 10 mm cover no longer heart.
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
        rv_length=rng.uniform(0.78, 0.93),
        rv_wall_mm=rng.uniform(2.0, 3.2),
        rv_tilt=rng.uniform(-0.35, 0.35),
        taper=rng.uniform(2.0, 3.2),
        harmonics=(flattening + _draw_amplitude(rng, 0.05), _draw_amplitude(rng, 0.025)),
        scar_direction=_make_direction(rng.uniform(-np.pi, np.pi)),
        septal_bulge_mm=habit.septal_bulge_mm * rng.uniform(0.4, 1.4),
        lean=(rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2)),
        papillary=tuple(
            (_make_direction(angle + rng.normal(0, 0.25)), rng.uniform(0.15, 0.24)) for angle in (2.1, -2.1)
        ),
        trabeculae=tuple((_make_direction(rng.uniform(-np.pi, np.pi)), rng.uniform(0.05, 0.10)) for _ in range(5)),
        fat_direction=_make_direction(rng.uniform(-0.9, 0.9)),
        fat_mm=rng.uniform(1.0, 7.0),
        atrium_size=rng.uniform(0.75, 1.0),
    )


def compute_end_diastole(heart: Heart) -> Phase:
    """Compute the sizes at end-diastole."""
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


def compute_end_systole(heart: Heart) -> Phase:
    """Compute the sizes at end-systole.

    The cavity's volume decreases by the ejection fraction; the myocardium keeps its volume and thickens. The base moves
    towards the apex by up to a fifth of the length, so that the most basal slices no longer show the ventricles, as in
    patients.
    """
    before = compute_end_diastole(heart)
    length = before.length_mm * (1 - 0.24 * heart.lv_ejection)
    cavity = before.cavity_radius_mm**2 * before.length_mm * (1 - heart.lv_ejection)
    myocardium = before.outer_radius_mm**2 * (before.length_mm + before.apex_wall_mm)
    myocardium -= before.cavity_radius_mm**2 * before.length_mm
    apex_wall = before.apex_wall_mm * 1.2
    outer_radius = ((cavity + myocardium) / (length + apex_wall)) ** 0.5
    depth = before.outer_radius_mm + before.rv_depth_mm * (1 - 0.75 * heart.rv_ejection) - outer_radius
    return Phase(
        heart=heart,
        base_mm=before.length_mm - length,
        length_mm=length,
        cavity_radius_mm=(cavity / length) ** 0.5,
        outer_radius_mm=outer_radius,
        apex_wall_mm=apex_wall,
        rv_depth_mm=max(depth, 0.25 * before.rv_depth_mm),
        rv_width=before.rv_width * (1 - 0.25 * heart.rv_ejection),
        scar=before.scar * 1.5,
    )


def compute_bounding_circle(heart: Heart) -> tuple[float, float]:
    """Compute the heart's bounding circle at its base.

    Returns:
        Radius of the circle, and ``u`` of its centre.
    """
    outer = (heart.lv_radius_mm + heart.wall_mm) * 1.06
    septal_end = outer + heart.rv_depth_mm + heart.rv_wall_mm
    return (septal_end + outer) / 2, (septal_end - outer) / 2


def _make_direction(angle: float) -> complex:
    return complex(np.cos(angle), np.sin(angle))


def _draw_amplitude(rng: np.random.Generator, largest: float) -> complex:
    return rng.uniform(0, largest) * _make_direction(rng.uniform(-np.pi, np.pi))
