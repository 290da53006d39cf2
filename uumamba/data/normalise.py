"""Intensity normalisation, and correction of Hounsfield units.

Air is -1024 HU (some scanners write -1000), water 0. Outside the round field of view scanners write padding far below
air. Some CT exports lack the intercept, so that air is 0 and water 1024.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.chunks import chunks, spans
from uumamba.data.grid import Image
from uumamba.data.order_statistics import find_percentiles
from uumamba.data.recipe import CtStatistics
from uumamba.data.warn import warn_repaired
from uumamba.runtime.errors import require_case

Normaliser = Callable[[NDArray[Any]], Image]  # from stored planes to normalised float32

AIR_HU = -1024
DENSE_HU = -500  # between lung and soft tissue; denser voxels belong to the patient or the table

_SHIFT_HU = 1024
_TISSUE_HU = 150  # largest distance of blood, muscle, fat and water from 0
_PADDING_HU = -1500
_MOST_NEGATIVE = 0.001
_LEAST_TISSUE = 0.05


def make_ct_normaliser(statistics: CtStatistics, *, shift: int) -> Normaliser:
    """Make the normaliser of CT, the same for every scan.

    Stored values plus ``shift`` are Hounsfield units.
    """
    return partial(
        _normalise,
        low=statistics.low_hu,
        high=statistics.high_hu,
        mean=statistics.mean_hu,
        std=statistics.std_hu,
        as_float=partial(to_hounsfield, shift=shift),
    )


def make_scan_normaliser(image: NDArray[Any], clip_percentiles: tuple[float, float], *, case_id: str) -> Normaliser:
    """Make a normaliser to mean 0 and variance 1.

    The image is first clipped to its own percentiles.

    Raises:
        CaseError: the percentiles are equal, as in a constant image.
    """
    low, high = find_percentiles(image, clip_percentiles)
    mean = _mean(image, lambda planes: np.clip(to_float32(planes), low, high))
    std = math.sqrt(_mean(image, lambda planes: (np.clip(to_float32(planes), low, high) - mean) ** 2))
    require_case(
        low < high and std > 0,
        case_id,
        "image",
        got=f"equal percentiles {clip_percentiles[0]:g} and {clip_percentiles[1]:g} (both {low:g})",
        expected="voxels with different values",
        fix="exclude the scan",
    )
    return partial(_normalise, low=low, high=high, mean=mean, std=std, as_float=to_float32)


def _normalise(
    planes: NDArray[Any], *, low: float, high: float, mean: float, std: float, as_float: Callable[[NDArray[Any]], Image]
) -> Image:
    """Clip planes to ``low`` and ``high``, subtract ``mean``, divide by ``std``."""
    clipped = np.clip(as_float(planes), low, high)
    clipped -= np.float32(mean)
    clipped /= np.float32(std)
    return clipped.astype(np.float32, copy=False)


def _mean(image: NDArray[Any], change: Callable[[NDArray[Any]], NDArray[Any]]) -> float:
    return math.fsum(change(image[a:b]).sum(dtype=np.float64) for a, b in spans(len(image), image[0].size)) / image.size


def to_float32(planes: NDArray[Any]) -> Image:
    """Convert planes to float32, with their values."""
    return planes.astype(np.float32)


def find_shift(scan: NDArray[Any], *, case_id: str) -> int:
    """Find the offset from stored values to Hounsfield units.

    The offset is -1024, with a warning, if at most 0.1 % of the voxels are negative (a scan in Hounsfield units has
    air, lung or fat) and at least 5 % are within 150 of 1024, like soft tissue without an intercept. No scan without
    fat and air has that much dense bone. Otherwise the offset is 0. Padding is ignored, with a warning;
    :func:`to_hounsfield` sets it to air.

    Raises:
        CaseError: all voxels have the same value.
    """
    lowest, highest = float(scan.min()), float(scan.max())
    require_case(
        lowest != highest, case_id, "image", got=lowest, expected="more than one value", fix="exclude the scan"
    )
    inside = negative = tissue = 0
    for part in chunks(scan):
        padding = int(np.count_nonzero(part < AIR_HU))
        inside += part.size - padding
        negative += int(np.count_nonzero(part < 0)) - padding
        tissue += int(np.count_nonzero((part >= _SHIFT_HU - _TISSUE_HU) & (part <= _SHIFT_HU + _TISSUE_HU)))
    is_shifted = inside > 0 and negative <= _MOST_NEGATIVE * inside and tissue >= _LEAST_TISSUE * inside
    shift = -_SHIFT_HU if is_shifted else 0
    if shift:
        warn_repaired(case_id, "its values are Hounsfield units plus 1024; 1024 is subtracted")
    if lowest + shift < _PADDING_HU:
        warn_repaired(case_id, f"its padding of {lowest + shift:g} HU is set to air, {AIR_HU:g} HU")
    return shift


def to_hounsfield(values: NDArray[Any], shift: int) -> NDArray[np.float32]:
    """Convert values to Hounsfield units in float32, clipped below at air."""
    hounsfield = values.astype(np.float32)
    if shift != 0:
        hounsfield += np.float32(shift)
    return np.maximum(hounsfield, np.float32(AIR_HU), out=hounsfield)
