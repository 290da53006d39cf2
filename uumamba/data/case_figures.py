"""Figures of an image and its label map, for fingerprints."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.geometry import Geometry
from uumamba.data.label_scheme import IGNORED
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


def measure_prepared(case: PreparedCase, *, classes: Mapping[str, int], patient_id: str) -> CaseFigures:
    """Measure a training case; of large arrays few planes are read.

    Args:
        case: the case, with voxels of structures.
        classes: class of each structure.
        patient_id: the patient.
    """
    geometry, planes = case.geometry, case.locations[case.locations[:, 0] > 0, 1]
    voxel_ml = float(np.prod(geometry.prepared_spacing_mm)) / 1000
    thumbnail = None
    if planes.size:
        shown = _spread(int(planes.min()), int(planes.max()))
        thumbnail = _show_surroundings(case.image, case.label, geometry, shown, scale=np.ones(3), start=np.zeros(3))
    return CaseFigures(
        patient_id,
        _measure_lengths(geometry),
        _measure_intensities(case.image),
        {name: voxel_ml * case.label_voxels.get(value, 0) for name, value in classes.items()},
        thumbnail,
    )


def measure_prediction(
    image: NDArray[Any], native_label: LabelMap, *, geometry: Geometry, classes: Mapping[str, int]
) -> CaseFigures:
    """Measure an input and its predicted label map.

    Args:
        image: prepared image ``(C, Z, Y, X)``.
        native_label: label map on the native grid.
        geometry: geometry of the prepared image.
        classes: class of each structure.
    """
    label = geometry.orient(native_label)
    voxel_ml = float(np.prod(geometry.oriented_spacing_mm)) / 1000
    counts = np.bincount(label.ravel(), minlength=256)
    found = np.flatnonzero(label.any(axis=(1, 2)))
    scale = np.divide(geometry.oriented_spacing_mm, geometry.prepared_spacing_mm)
    thumbnail = None
    if found.size:
        planes = _spread(int(found[0]), int(found[-1]))
        thumbnail = _show_surroundings(image, label, geometry, planes, scale=scale, start=np.array(geometry.crop_start))
    return CaseFigures(
        "",
        _measure_lengths(geometry),
        _measure_intensities(image),
        {name: voxel_ml * int(counts[value]) for name, value in classes.items()},
        thumbnail,
    )


def _measure_lengths(geometry: Geometry) -> dict[str, float]:
    spacing, shape = geometry.oriented_spacing_mm, geometry.oriented_shape
    extent = [mm * size for mm, size in zip(spacing, shape, strict=True)]
    return {
        "spacing between slices": spacing[0],
        "spacing in plane": (spacing[1] + spacing[2]) / 2,
        "extent across slices": extent[0],
        "field of view": max(extent[1:]),
    }


def _measure_intensities(image: NDArray[Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for number, channel in enumerate(image):
        planes = np.asarray(channel[_spread(0, len(channel) - 1)], dtype=np.float32)
        named = "" if len(image) == 1 else f" of channel {number}"
        for share, value in zip(_QUANTILES, np.quantile(planes, _QUANTILES), strict=True):
            found[f"{share:.0%} quantile of intensities{named}"] = float(value)
        found[f"correlation of neighbouring voxels{named}"] = _correlate(planes[..., 1:], planes[..., :-1])
    return found


def _correlate(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    first, second = one - one.mean(), other - other.mean()
    product = float(np.sqrt(np.square(first).mean() * np.square(second).mean()))
    return float((first * second).mean()) / product if product else 1.0


def _show_surroundings(
    image: NDArray[Any],
    label: LabelMap,
    geometry: Geometry,
    planes: NDArray[np.int_],
    *,
    scale: NDArray[np.float64],
    start: NDArray[np.float64],
) -> Thumbnail | None:
    """Make the thumbnail around structures; scale and start lead to prepared voxels."""
    places = np.argwhere((label[planes] > 0) & (label[planes] != IGNORED))
    if not places.size:
        return None
    centre = ((places[:, 1:].mean(axis=0) + 0.5 - start[1:]) * scale[1:]) - 0.5
    prepared = np.round((planes + 0.5 - start[0]) * scale[0] - 0.5).astype(int).clip(0, image.shape[1] - 1)
    return make_thumbnail(
        np.asarray(image[0][prepared]), centre, spacing_mm=geometry.prepared_spacing_mm[1:], half_mm=HALF_MM
    )


def _spread(first: int, last: int) -> NDArray[np.int_]:
    """Spread at most 16 planes over a range."""
    return np.unique(np.linspace(first, last, min(MOST_PLANES, last - first + 1)).round().astype(int))
