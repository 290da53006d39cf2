"""Intensity normalisation: four numbers found once, applied to a few planes at a time."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.chunks import spans
from uumamba.data.hounsfield import to_hounsfield
from uumamba.data.recipe import CtStatistics
from uumamba.runtime.errors import require_case

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Normaliser:
    """Clip to ``low`` and ``high``, subtract ``mean`` and divide by ``std``.

    Args:
        low: smallest value kept.
        high: largest value kept.
        mean: becomes 0.
        std: becomes 1.
        as_float: converts stored values to the scale of the four numbers.
    """

    low: float
    high: float
    mean: float
    std: float
    as_float: Callable[[NDArray[Any]], Image]

    def __call__(self, planes: NDArray[Any]) -> Image:
        """Normalise some planes; float32."""
        clipped = np.clip(self.as_float(planes), self.low, self.high)
        clipped -= np.float32(self.mean)
        clipped /= np.float32(self.std)
        return clipped.astype(np.float32, copy=False)


def normaliser_for_ct(statistics: CtStatistics, *, shift: int) -> Normaliser:
    """Normaliser of CT, alike for every scan of a data set; stored values plus ``shift`` are Hounsfield units."""
    as_float = partial(to_hounsfield, shift=shift)
    return Normaliser(statistics.low_hu, statistics.high_hu, statistics.mean_hu, statistics.std_hu, as_float)


def normaliser_for_scan(image: NDArray[Any], clip_percentiles: tuple[float, float], *, case_id: str) -> Normaliser:
    """Normaliser that clips an image to its own percentiles and gives it mean 0 and variance 1.

    Raises:
        CaseError: the image is constant.
    """
    low, high = np.percentile(image.astype(np.float32).ravel(order="K"), clip_percentiles, overwrite_input=True)
    mean = _mean(image, lambda planes: np.clip(_as_float32(planes), low, high))
    std = math.sqrt(_mean(image, lambda planes: (np.clip(_as_float32(planes), low, high) - mean) ** 2))
    found, fix = f"{image.flat[0]:g} wherever it is not 0", "leave out the scan"
    require_case(low < high and std > 0, case_id, "image", got=found, expected="more than one value", fix=fix)
    return Normaliser(low, high, mean, std, _as_float32)


def _mean(image: NDArray[Any], change: Callable[[NDArray[Any]], NDArray[Any]]) -> float:
    slabs = spans(len(image), image[0].size)
    return math.fsum(change(image[first:last]).sum(dtype=np.float64) for first, last in slabs) / image.size


def _as_float32(planes: NDArray[Any]) -> Image:
    return planes.astype(np.float32)
