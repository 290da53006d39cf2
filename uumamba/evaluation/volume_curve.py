"""End diastole and end systole from the volume curve of a ventricle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from uumamba.runtime.errors import require

PAIR, LEAST_FRAMES = 2, 5
LEAST_EF_PERCENT, LARGEST_EF_PERCENT = 5.0, 95.0
GAP_OF_RANGE, GAP_OF_STEP = 0.5, 1.5
"""Largest step from the last frame to the first one of a whole cycle, in shares of the range and largest other step."""
LEAST_RISE = 0.2
"""Least rise before and after the minimum of a part of a cycle, as a share of the range."""
JUMP_OF_RANGE, JUMP_OF_VOLUME = 0.35, 0.1
"""Least distance of an outlier from both neighbours, in shares of the range and median of the other frames."""
MOST_OUTLIERS = 0.2
"""Largest share of frames that are outliers."""
_BAND = 0.35  # beats are counted between the lower and the upper third of the curve

Curve = NDArray[np.float64]


@dataclass(frozen=True)
class FoundPhases:
    """Phases of a volume curve.

    Attributes:
        phases: index of the frame of ED and ES; empty if the curve is no heart cycle.
        outliers: indices of frames with a jump, which are neither ED nor ES.
        doubts: reasons why the curve is no heart cycle.
    """

    phases: Mapping[str, int] = field(default_factory=dict)
    outliers: tuple[int, ...] = ()
    doubts: tuple[str, ...] = ()


def find_phases(volumes_ml: Sequence[float]) -> FoundPhases:
    r"""Find end diastole and end systole in a volume curve.

    Frames with a jump are replaced by the mean of their neighbours, then the curve of n frames is smoothed:

    .. math:: s_i = \tfrac{1}{4} (v_{i-1} + 2 v_i + v_{i+1}), \quad \mathrm{ED} = \arg\max s, \quad
        \mathrm{ES} = \arg\min s

    ED and ES are no outliers, and the first of equal frames. In a whole cycle indices are modulo n, and the first frame
    may be any. Its ends differ by at most half of the range, or 1.5 times the largest other step. At the ends of any
    other curve, :math:`v_{-1} = v_0` and :math:`v_n = v_{n-1}`. A frame is an outlier if it is above or below both
    neighbours by more than 35 % of the range and 10 % of the median of all other frames.

    A heart cycle has at least 5 frames, outliers in at most 20 % of them, an ejection fraction
    :math:`100 (1 - \min s / \max s)` from 5 to 95 %, and one minimum (s falls below its lower third and rises above its
    upper third once). A triggered cine may end in early diastole: of a part of a cycle, v is higher by 20 % of the
    range both before and after ES. Two frames are the two
    phases, as archives keep them, if their ejection fraction is in that range. For any other curve no phase is
    returned, since an ejection fraction made from it would look like a measurement.

    Args:
        volumes_ml: volume of each frame, in the order of time.

    Raises:
        UsageError: there is no volume, or one is negative or not finite.

    Example:
        >>> find_phases([150, 140, 110, 80, 65, 70, 95, 115, 125, 130]).phases
        {'ED': 0, 'ES': 4}
        >>> find_phases([150, 150, 150, 150, 150, 150]).doubts
        ('the volume changes by 0 %, expected 5 to 95 %',)
    """
    volumes = np.asarray(volumes_ml, dtype=np.float64)
    require(
        volumes.size and np.isfinite(volumes).all() and volumes.min() >= 0,
        "volumes_ml",
        got=list(volumes_ml),
        expected="the finite volume of each frame",
    )
    if not volumes.any():
        return FoundPhases(doubts=("no frame has a volume",))
    if len(volumes) == PAIR:
        doubts = tuple(_doubt_change(volumes))
        return FoundPhases({} if doubts else {"ED": int(volumes.argmax()), "ES": int(volumes.argmin())}, doubts=doubts)
    if len(volumes) < LEAST_FRAMES:
        return FoundPhases(doubts=(f"it has {len(volumes)} frames, expected {LEAST_FRAMES} or more",))
    outliers = _find_outliers(volumes)
    bridged = _bridge(volumes, outliers)
    smooth = _smooth(bridged, is_cycle=_is_cycle(bridged))
    if doubts := tuple(_find_doubts(smooth, outliers)):
        return FoundPhases(outliers=outliers, doubts=doubts)
    known = np.delete(np.arange(len(smooth)), outliers)
    phases = {"ED": int(known[smooth[known].argmax()]), "ES": int(known[smooth[known].argmin()])}
    if not (_is_cycle(bridged) or _rises_around(bridged, phases["ES"])):
        gap_ml = abs(bridged[-1] - bridged[0])
        doubt = f"its ends differ by {gap_ml:.0f} ml without a minimum in between, expected a whole cycle"
        return FoundPhases(outliers=outliers, doubts=(doubt,))
    return FoundPhases(phases, outliers)


def _find_outliers(volumes: Curve) -> tuple[int, ...]:
    """Find frames that jump away from both neighbours."""
    before, after = volumes - np.roll(volumes, 1), volumes - np.roll(volumes, -1)
    jumps = np.where(before * after > 0, np.minimum(abs(before), abs(after)), 0.0)
    found = []
    for index in np.flatnonzero(jumps):
        others = np.delete(volumes, index)
        limit = max(JUMP_OF_RANGE * np.ptp(others), JUMP_OF_VOLUME * np.median(others))
        if jumps[index] > limit:
            found.append(int(index))
    return tuple(found)


def _bridge(volumes: Curve, outliers: Sequence[int]) -> Curve:
    """Replace outliers by the mean of their neighbours in the cycle."""
    bridged, places = volumes.copy(), list(outliers)
    bridged[places] = (np.roll(volumes, 1)[places] + np.roll(volumes, -1)[places]) / 2
    return bridged


def _is_cycle(bridged: Curve) -> bool:
    """Return whether the end of a curve meets its beginning."""
    step = abs(np.diff(bridged)).max()
    return bool(abs(bridged[-1] - bridged[0]) <= max(GAP_OF_RANGE * np.ptp(bridged), GAP_OF_STEP * step))


def _rises_around(bridged: Curve, lowest: int) -> bool:
    """Return whether a curve is higher both before and after a frame."""
    sides = (bridged[:lowest], bridged[lowest + 1 :])
    return all(side.size and side.max() - bridged[lowest] >= LEAST_RISE * np.ptp(bridged) for side in sides)


def _smooth(volumes: Curve, *, is_cycle: bool) -> Curve:
    padded = np.pad(volumes, 1, mode="wrap" if is_cycle else "edge")
    return (padded[:-2] + 2 * volumes + padded[2:]) / 4


def _find_doubts(smooth: Curve, outliers: Sequence[int]) -> list[str]:
    doubts, count = [], len(smooth)
    if len(outliers) > MOST_OUTLIERS * count:
        doubts.append(f"{len(outliers)} of {count} frames are outliers, expected at most {MOST_OUTLIERS:.0%}")
    if change := _doubt_change(smooth):
        return [*doubts, *change]
    minima = _count_minima(smooth)
    if minima != 1:
        doubts.append(f"it has {minima} minima, expected one heart cycle")
    return doubts


def _doubt_change(curve: Curve) -> list[str]:
    ef_percent = 100 * (1 - curve.min() / curve.max())
    if LEAST_EF_PERCENT <= ef_percent <= LARGEST_EF_PERCENT:
        return []
    expected = f"{LEAST_EF_PERCENT:.0f} to {LARGEST_EF_PERCENT:.0f} %"
    return [f"the volume changes by {ef_percent:.0f} %, expected {expected}"]


def _count_minima(smooth: Curve) -> int:
    """Count rises from the lower to the upper third, cyclically."""
    low, high = (smooth.min() + share * np.ptp(smooth) for share in (_BAND, 1 - _BAND))
    sides = np.where(smooth <= low, -1, np.where(smooth >= high, 1, 0))
    sides = sides[sides != 0]
    return int(np.count_nonzero((sides == 1) & (np.roll(sides, 1) == -1)))
