"""Equal wall time, converted to numbers of steps.

The cost of a step is measured once and decides the number of steps of a method. A run is then deterministic, and other
work of the machine cannot favour a method.

A run is then a number of steps, so it is deterministic, and a busy machine cannot favour whoever ran at another time.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from time import perf_counter
from typing import TypeVar

import torch

Key = TypeVar("Key")


def time_in_rounds(
    work: Mapping[Key, Callable[[], object]], *, rounds: int, device: str = "cpu"
) -> dict[Key, list[float]]:
    """Time each piece of work in alternating rounds, in seconds.

    A slow period of the machine then affects all of them. An additional first round is a warm-up.
    """
    seconds: dict[Key, list[float]] = {name: [] for name in work}
    for index in range(rounds + 1):
        for name, each in work.items():
            begin = perf_counter()
            each()
            if device == "cuda":
                torch.cuda.synchronize()
            if index:
                seconds[name].append(perf_counter() - begin)
    return seconds


def compute_ratios(seconds: Mapping[str, Sequence[float]], control: str) -> dict[str, list[float]]:
    """Divide each time by the control's time in the same round.

    Example:
        >>> compute_ratios({"base": [1.0, 2.0], "SAM": [2.0, 5.0]}, "base")["SAM"]
        [2.0, 2.5]
    """
    return {
        name: [own / other for own, other in zip(values, seconds[control], strict=True)]
        for name, values in seconds.items()
    }


def compute_steps(steps: int, round_ratios: Sequence[float]) -> int:
    """Return the number of steps that fit into the control's time.

    It follows from the median ratio and is at least 1.

    Example:
        >>> compute_steps(300, [1.9, 2.0, 9.0])
        150
    """
    return max(1, round(steps / median(round_ratios)))
