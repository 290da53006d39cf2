"""Median time of work on a processor or an accelerator."""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

REPEATS = 5


def median_seconds(work: Callable[[], object], *, repeats: int = REPEATS, at_most_s: float = 1.0) -> float:
    """Measure the median time of ``work`` after one warm-up, in seconds.

    After ``at_most_s`` seconds no repeat is added; there is at least one.

    Example:
        >>> done = []
        >>> median_seconds(lambda: done.append(1), repeats=3) < 0.1, len(done)
        (True, 4)
    """
    times: list[float] = []
    while len(times) < repeats + 1 and sum(times[1:]) < at_most_s:
        begin = perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(perf_counter() - begin)
    return median(times[1:])
