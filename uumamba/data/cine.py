"""Cines: scans of one grid at several times of a heart cycle."""

from dataclasses import dataclass

from uumamba.data.scan import Scan


@dataclass(frozen=True)
class Cine:
    """Frames of a cine.

    Attributes:
        frames: 3-D scans on one grid, in the order of time.
        times_ms: time of each frame after the trigger (the R wave), or after the first frame; None if unknown.
    """

    frames: tuple[Scan, ...]
    times_ms: tuple[float, ...] | None = None
