"""Intensity normalisation, and Hounsfield units.

Known faults of CT exports are undone. Air is -1024 HU (some scanners write -1000), water 0. Outside the round field of
view scanners write padding far below air; some exports lack the intercept, so that air is 0 and water 1024.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.chunks import chunks, spans
from uumamba.data.recipe import CtStatistics
from uumamba.data.warn import warn_repaired
from uumamba.runtime.errors import require_case

Image = NDArray[np.float32]
Normaliser = Callable[[NDArray[Any]], Image]
"""``normaliser(planes)``: some planes of stored values to normalised float32."""

AIR_HU = -1024
DENSE_HU = -500
"""Midway between air or lung and soft tissue: what is denser belongs to the patient, or to the table."""

_SHIFT_HU = 1024
_TISSUE_HU = 150  # blood, muscle, fat and water are this close to 0
_PADDING_HU = -1500
_MOST_NEGATIVE = 0.001
_LEAST_TISSUE = 0.05


def normaliser_for_ct(statistics: CtStatistics, *, shift: int) -> Normaliser:
    """Make the normaliser of CT, alike for every scan.

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


def normaliser_for_scan(image: NDArray[Any], clip_percentiles: tuple[float, float], *, case_id: str) -> Normaliser:
    """Make a normaliser to mean 0 and variance 1.

    It clips an image to its own percentiles first.

    Raises:
        CaseError: the image is constant.
    """
    low, high = np.percentile(image.astype(np.float32).ravel(order="K"), clip_percentiles, overwrite_input=True)
    mean = _mean(image, lambda planes: np.clip(_as_float32(planes), low, high))
    std = math.sqrt(_mean(image, lambda planes: (np.clip(_as_float32(planes), low, high) - mean) ** 2))
    require_case(
        low < high and std > 0,
        case_id,
        "image",
        got=f"{image.flat[0]:g} wherever it is not 0",
        expected="more than one value",
        fix="leave out the scan",
    )
    return partial(_normalise, low=low, high=high, mean=mean, std=std, as_float=_as_float32)


def _normalise(
    planes: NDArray[Any], *, low: float, high: float, mean: float, std: float, as_float: Callable[[NDArray[Any]], Image]
) -> Image:
    """Clip, shift and scale some planes; float32.

    They are clipped to ``low`` and ``high``, then less ``mean``, divided by ``std``.
    """
    clipped = np.clip(as_float(planes), low, high)
    clipped -= np.float32(mean)
    clipped /= np.float32(std)
    return clipped.astype(np.float32, copy=False)


def _mean(image: NDArray[Any], change: Callable[[NDArray[Any]], NDArray[Any]]) -> float:
    slabs = spans(len(image), image[0].size)
    return math.fsum(change(image[first:last]).sum(dtype=np.float64) for first, last in slabs) / image.size


def _as_float32(planes: NDArray[Any]) -> Image:
    return planes.astype(np.float32)


def find_shift(scan: NDArray[Any], *, case_id: str) -> int:
    """Find the offset that makes a scan's values Hounsfield units.

    A warning says where it is not 0. Values count as 1024 too high where next to none is negative (a true scan has air,
    lung or fat) and one in twenty is within 150 of 1024, as soft tissue would be; so much dense bone is in no scan that
    has neither fat nor air. Padding counts as neither, and is warned of: :func:`to_hounsfield` makes it air.

    Raises:
        CaseError: every voxel has the same value.
    """
    lowest, highest = float(scan.min()), float(scan.max())
    require_case(
        lowest != highest, case_id, "image", got=lowest, expected="more than one value", fix="leave out the scan"
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
        warn_repaired(case_id, "its values are 1024 above Hounsfield units (soft tissue at 1024); 1024 is subtracted")
    if lowest + shift < _PADDING_HU:
        warn_repaired(case_id, f"its padding of {lowest + shift:g} HU, below any air, is set to {AIR_HU:g}")
    return shift


def to_hounsfield(values: NDArray[Any], shift: int) -> NDArray[np.float32]:
    """Convert values to Hounsfield units, float32, none below air."""
    hounsfield = values.astype(np.float32)
    if shift != 0:
        hounsfield += np.float32(shift)
    return np.maximum(hounsfield, np.float32(AIR_HU), out=hounsfield)
