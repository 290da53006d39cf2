"""Template of an image's surroundings, which tells it from its mirror images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Thumbnail = NDArray[np.float64]
CELLS = 12
_SAMPLES = 6
_RIDGE = 100.0
_PARTS = 5
_FALSE_ALARMS, _LEAST_RECALL = 0.02, 0.8


@dataclass(frozen=True)
class OrientationTemplate:
    r"""Linear template of small images, for axes along which they have sides.

    With a thumbnail x and its mirror image Fx along an axis, the score of x is

    .. math:: s(x) = w \cdot (x - Fx), \qquad s(Fx) = -s(x), \qquad
        w = \arg\min_w \sum_i (1 - s(x_i))^2 + \lambda |w|^2

    over the training images, with lambda 100. An image is called mirrored if its score is below a limit, which two of a
    hundred training images do not reach, each scored by a template of other patients. An axis is left out if less than
    eight of ten mirrored training images would be found.

    Attributes:
        half_mm: half the width of the square that a thumbnail shows.
        weights: w of each axis, row after row.
        limits: smallest score of an image that is not mirrored.

    Example:
        >>> ramps = [np.tile(np.linspace(-1, 1, CELLS), (CELLS, 1)) for _ in range(20)]
        >>> template = OrientationTemplate.fit(ramps, patients=[f"{i}" for i in range(20)], half_mm=100.0)
        >>> template.find_mirrored(ramps[0]), template.find_mirrored(ramps[0][:, ::-1])
        ([], [1])
    """

    half_mm: float
    weights: Mapping[int, tuple[float, ...]]
    limits: Mapping[int, float]

    @classmethod
    def fit(cls, thumbnails: Sequence[Thumbnail], *, patients: Sequence[str], half_mm: float) -> "OrientationTemplate":
        """Fit the template, and its limits on patients that were left out."""
        weights, limits = {}, {}
        part_of = {patient: number % _PARTS for number, patient in enumerate(dict.fromkeys(patients))}
        parts = np.array([part_of[patient] for patient in patients])
        for axis in (0, 1):
            sides = np.array([(each - np.flip(each, axis)).ravel() for each in thumbnails])
            scores = np.concatenate(
                [sides[parts == part] @ _fit_weights(sides[parts != part]) for part in range(_PARTS)]
            )
            limit = min(0.0, float(np.quantile(scores, _FALSE_ALARMS)))
            if np.mean(-scores < limit) >= _LEAST_RECALL:
                weights[axis] = tuple(float(f"{value:.4g}") for value in _fit_weights(sides))
                limits[axis] = limit
        return cls(half_mm, weights, limits)

    def find_mirrored(self, thumbnail: Thumbnail) -> list[int]:
        """List the axes along which an image looks mirrored."""
        return [
            axis
            for axis, weights in self.weights.items()
            if (thumbnail - np.flip(thumbnail, axis)).ravel() @ np.array(weights) < self.limits[axis]
        ]


def make_thumbnail(
    planes: NDArray[Any], centre: Sequence[float], *, spacing_mm: Sequence[float], half_mm: float
) -> Thumbnail:
    """Average planes into 12 x 12 cells around a point.

    The result has mean 0 and variance 1. Beyond the border the image goes on as at its border.

    Args:
        planes: ``(n, Y, X)``.
        centre: place of the middle in voxels, ``(y, x)``.
        spacing_mm: spacing of the two axes.
        half_mm: half the width of the square.
    """
    steps = np.linspace(-half_mm, half_mm, CELLS * _SAMPLES)
    places = [
        np.clip(np.round(middle + steps / mm), 0, size - 1).astype(int)
        for middle, mm, size in zip(centre, spacing_mm, planes.shape[1:], strict=True)
    ]
    sampled = planes[:, places[0][:, None], places[1]].mean(axis=0, dtype=np.float64)
    cells = sampled.reshape(CELLS, _SAMPLES, CELLS, _SAMPLES).mean(axis=(1, 3))
    centred = cells - cells.mean()
    return centred / max(float(centred.std()), np.finfo(np.float64).tiny)


def _fit_weights(sides: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit ridge regression of 1, without an intercept."""
    return np.linalg.solve(sides.T @ sides + _RIDGE * np.eye(sides.shape[1]), sides.sum(axis=0))
