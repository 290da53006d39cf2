"""Figures of an image and its label map, for fingerprints."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.geometry import Geometry
from uumamba.data.label_scheme import IGNORED
from uumamba.data.locations import count_values
from uumamba.data.orientation_template import Thumbnail, make_thumbnail
from uumamba.data.prepared import PreparedCase
from uumamba.types import LabelMap

HALF_MM = 120.0
"""Half the width of the surroundings that the template of the orientation sees."""
MOST_PLANES = 16
_QUANTILES = (0.01, 0.5, 0.99)


@dataclass(frozen=True)
class CaseFigures:
    """Figures of one image and its label map.

    Attributes:
        patient_id: the patient.
        lengths: spacings and extents in mm, by name.
        intensities: quantiles after normalisation and the correlation of neighbours, by name.
        volumes_ml: volume of each structure.
        thumbnail: the image around the structures, for the template; None without a structure.
    """

    patient_id: str
    lengths: Mapping[str, float]
    intensities: Mapping[str, float]
    volumes_ml: Mapping[str, float]
    thumbnail: Thumbnail | None


ReadPlanes = Callable[[NDArray[np.int_]], NDArray[Any]]
"""Function that reads planes of a prepared image, ``(C, n, Y, X)``, by their increasing numbers."""


def measure_prepared(case: PreparedCase, *, classes: Mapping[str, int], patient_id: str) -> CaseFigures:
    """Measure a training case; few planes of large arrays are read.

    Args:
        case: the case, with voxels of structures.
        classes: class of each structure.
        patient_id: the patient.
    """
    planes = case.locations[case.locations[:, 0] > 0, 1]
    around = None
    if planes.size:
        around = _find_surroundings(case.label, _spread(int(planes.min()), int(planes.max())))
    voxels = case.label_voxels or dict(enumerate(count_values(case.label).sum(axis=0)))  # older cases store no counts
    voxel_ml = float(np.prod(case.geometry.prepared_spacing_mm)) / 1000
    volumes_ml = {name: voxel_ml * int(voxels.get(value, 0)) for name, value in classes.items()}
    return _measure(lambda planes: case.image[:, planes], case.geometry, volumes_ml, around, patient_id)


def measure_prediction(
    read_planes: ReadPlanes, native_label: LabelMap, *, geometry: Geometry, classes: Mapping[str, int]
) -> CaseFigures:
    """Measure an input and its predicted label map.

    Args:
        read_planes: reads planes of the prepared image.
        native_label: label map on the native grid.
        geometry: geometry of the prepared image.
        classes: class of each structure.
    """
    label = geometry.orient(native_label)
    counts = count_values(label)
    found = np.flatnonzero(counts[:, 1:IGNORED].any(axis=1))
    around = None
    if found.size:
        places = _find_surroundings(label, _spread(int(found[0]), int(found[-1])))
        scale = np.divide(geometry.oriented_spacing_mm, geometry.prepared_spacing_mm)
        around = [
            (each + 0.5 - start) * mm - 0.5 for each, start, mm in zip(places, geometry.crop_start, scale, strict=True)
        ]
    voxel_ml = float(np.prod(geometry.oriented_spacing_mm)) / 1000
    totals = counts.sum(axis=0)
    return _measure(
        read_planes, geometry, {name: voxel_ml * int(totals[value]) for name, value in classes.items()}, around, ""
    )


def _find_surroundings(label: LabelMap, planes: NDArray[np.int_]) -> Sequence[Any]:
    """Return the planes, and the mean row and column of their structures."""
    places = np.argwhere((label[planes] > 0) & (label[planes] != IGNORED))
    return [planes, *places[:, 1:].mean(axis=0)] if places.size else [planes, *np.divide(label.shape[1:], 2)]


def _measure(
    read_planes: ReadPlanes,
    geometry: Geometry,
    volumes_ml: Mapping[str, float],
    around: Sequence[Any] | None,
    patient_id: str,
) -> CaseFigures:
    """Read the planes of all figures once, and measure them."""
    depth = geometry.prepared_shape[0]
    spread = _spread(0, depth - 1)
    shown = spread if around is None else np.round(around[0]).astype(int).clip(0, depth - 1)
    wanted = np.union1d(spread, shown)
    planes = np.asarray(read_planes(wanted), dtype=np.float32)
    thumbnail = None
    if around is not None:
        thumbnail = make_thumbnail(
            planes[0, np.searchsorted(wanted, shown)],
            around[1:],
            spacing_mm=geometry.prepared_spacing_mm[1:],
            half_mm=HALF_MM,
        )
    intensities = _measure_intensities(planes[:, np.searchsorted(wanted, spread)])
    return CaseFigures(patient_id, _measure_lengths(geometry), intensities, volumes_ml, thumbnail)


def _measure_lengths(geometry: Geometry) -> dict[str, float]:
    spacing, shape = geometry.oriented_spacing_mm, geometry.oriented_shape
    extent = [mm * size for mm, size in zip(spacing, shape, strict=True)]
    return {
        "spacing between slices": spacing[0],
        "spacing in plane": (spacing[1] + spacing[2]) / 2,
        "extent across slices": extent[0],
        "field of view": max(extent[1:]),
    }


def _measure_intensities(planes: NDArray[np.float32]) -> dict[str, float]:
    found: dict[str, float] = {}
    for number, channel in enumerate(planes):
        named = "" if len(planes) == 1 else f" of channel {number}"
        for share, value in zip(_QUANTILES, np.quantile(channel, _QUANTILES), strict=True):
            found[f"{share:.0%} quantile of intensities{named}"] = float(value)
        found[f"correlation of neighbouring voxels{named}"] = _correlate(channel[..., 1:], channel[..., :-1])
    return found


def _correlate(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    first, second = one - one.mean(), other - other.mean()
    product = float(np.sqrt(np.square(first).mean() * np.square(second).mean()))
    return float((first * second).mean()) / product if product else 1.0


def _spread(first: int, last: int) -> NDArray[np.int_]:
    """Spread at most 16 planes over a range."""
    return np.unique(np.linspace(first, last, min(MOST_PLANES, last - first + 1)).round().astype(int))
