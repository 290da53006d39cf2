"""Heart of the coronary phantom: shape, pose and great vessels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from data_prep.phantoms.curves import Points, interpolate


@dataclass(frozen=True)
class Tube:
    """Tube with round cross-sections and rounded ends."""

    centreline_mm: Points
    radius_mm: NDArray[np.float64]


@dataclass(frozen=True)
class CoronaryHeart:
    """Motionless heart in its own frame.

    The origin is the heart's centre; +x is left, +y posterior, +z from the apex to the base. The surface is an
    ellipsoid with swellings. A place on the heart has a longitude (0 left, 90 posterior, 180 right, -90 anterior), a
    colatitude (0 base, 180 apex) and a height (1 on the surface, less inside).

    Args:
        half_axes_mm: half axes of the ellipsoid along x, y and z.
        swellings: direction and amplitude of each swelling, ``(n, 4)``.
        to_patient: rotation from the heart's frame to the patient's (left, posterior, superior).
        groove_degrees: colatitude of the groove between atria and ventricles.
        anterior_degrees: longitude of the anterior groove between the ventricles.
        posterior_degrees: longitude of the posterior groove between the ventricles.
        aorta: ascending aorta, from the left ventricle's outflow tract.
        pulmonary_artery: pulmonary trunk, from the right ventricle's outflow tract.
    """

    half_axes_mm: NDArray[np.float64]
    swellings: NDArray[np.float64]
    to_patient: NDArray[np.float64]
    groove_degrees: float
    anterior_degrees: float
    posterior_degrees: float
    aorta: Tube
    pulmonary_artery: Tube

    @property
    def radius_mm(self) -> float:
        """Radius of the ball with the ellipsoid's volume."""
        return float(np.prod(self.half_axes_mm) ** (1 / 3))

    @property
    def groove_mm(self) -> float:
        """Height of the groove between atria and ventricles."""
        return float(self.half_axes_mm[2] * np.cos(np.radians(self.groove_degrees)))

    @property
    def extent_mm(self) -> NDArray[np.float64]:
        """Extent of the ellipsoid from its centre along the patient's axes."""
        return np.linalg.norm(self.to_patient * self.half_axes_mm, axis=1)

    def place(self, places: Points) -> Points:
        """Convert places (longitude, colatitude, height) to points."""
        longitude, colatitude, height = np.radians(places[:, 0]), np.radians(places[:, 1]), places[:, 2]
        ring = np.sin(colatitude)
        way = np.stack([ring * np.cos(longitude), ring * np.sin(longitude), np.cos(colatitude)], axis=1)
        return way * (height * compute_swelling(way.T, self.swellings))[:, None] * self.half_axes_mm

    def locate(self, points_mm: Points) -> Points:
        """Convert points to places, with longitudes from -180 to 180."""
        scaled = points_mm / self.half_axes_mm
        distance = np.linalg.norm(scaled, axis=1)
        way = scaled / distance[:, None]
        height = distance / compute_swelling(way.T, self.swellings)
        longitude, colatitude = np.arctan2(way[:, 1], way[:, 0]), np.arccos(way[:, 2])
        return np.stack([np.degrees(longitude), np.degrees(colatitude), height], axis=1)

    def ostium(self, longitude_degrees: float, height: float) -> Points:
        """Find the point of the aorta's wall in a direction.

        Args:
            longitude_degrees: the direction.
            height: height above the heart's centre, in half axes.
        """
        axis = self.aorta.centreline_mm
        at = int(np.argmin(np.abs(axis[:, 2] - height * self.half_axes_mm[2])))
        angle = np.radians(longitude_degrees)
        along = axis[at + 1] - axis[at - 1]
        along /= np.linalg.norm(along)
        outwards = np.array([np.cos(angle), np.sin(angle), 0.0])
        outwards -= along * (along @ outwards)
        return axis[at] + self.aorta.radius_mm[at] * outwards / np.linalg.norm(outwards)


def compute_swelling(way: NDArray[np.floating], swellings: NDArray[np.float64]) -> NDArray[np.floating]:
    """Compute the heart's radius relative to its ellipsoid's.

    Swellings are alternately even and odd: the square and the cube of the cosine to their direction.

    Args:
        way: unit directions ``(3, ...)``.
        swellings: direction and amplitude of each swelling, ``(n, 4)``.
    """
    total = np.ones_like(way[0])
    for number, (x, y, z, amplitude) in enumerate(swellings.astype(way.dtype)):
        cosine = x * way[0] + y * way[1] + z * way[2]
        total += amplitude * cosine * cosine * (cosine if number % 2 else 1)
    return total


def draw_coronary_heart(rng: np.random.Generator) -> CoronaryHeart:
    """Draw a heart of 45 to 78 mm.

    This is about two thirds of an adult heart, and fits a small field of view.
    """
    half_axes = np.array([27.0, 25.0, 34.0]) * rng.uniform(0.85, 1.15) * rng.uniform(0.93, 1.07, 3)
    directions = rng.normal(size=(6, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    swellings = np.column_stack([directions, rng.uniform(-0.07, 0.07, 6)])
    # Rotation about the heart's axis, then of the apex to the front (about x) and to the left (about y).
    to_patient = Rotation.from_euler("zxy", rng.normal((0, -28, -40), (20, 12, 14)), degrees=True).as_matrix()
    # Great vessels leave along the heart's axis and bend upwards.
    up = to_patient[2] + [0.0, 0.0, 1.0]
    way_up = np.add([-0.05, -0.12, 0.95], np.outer([1.0, 2.0], up))
    aorta = [(0.18, 0, 0.3), (0.05, -0.06, 0.5), (-0.02, -0.1, 0.85), *way_up]
    trunk = [(-0.1, -0.6, 0.2), (0.22, -0.68, 0.7), (0.42, -0.4, 1.2), (0.4, 0.3, 1.7)]
    return CoronaryHeart(
        half_axes_mm=half_axes,
        swellings=swellings,
        to_patient=to_patient,
        groove_degrees=rng.uniform(60, 68),
        anterior_degrees=rng.uniform(-80, -55),
        posterior_degrees=rng.uniform(97, 125),
        aorta=_tube(rng, half_axes, aorta, 0.28),
        pulmonary_artery=_tube(rng, half_axes, trunk, 0.26),
    )


def _tube(
    rng: np.random.Generator, half_axes_mm: NDArray[np.float64], corners: Sequence[ArrayLike], radius: float
) -> Tube:
    """Draw a great vessel through corners.

    Args:
        rng: generator of all draws.
        half_axes_mm: unit of the corners.
        corners: corners of the course.
        radius: radius in half axes along x.
    """
    corners_mm = (np.array(corners) + rng.normal(0, 0.02, (len(corners), 3))) * half_axes_mm
    centreline = interpolate(np.linspace(0, len(corners) - 1, 100), np.arange(len(corners)), corners_mm)
    centreline = gaussian_filter1d(centreline, 6, axis=0, mode="nearest")
    radius_mm = radius * half_axes_mm[0] * rng.uniform(0.92, 1.1)
    return Tube(centreline, np.full(len(centreline), radius_mm))
