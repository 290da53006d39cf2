"""Which voxels a patch is taken around: how often foreground, of which class, and how much air is put up with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator

from uumamba.runtime.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """How the samples of a batch are chosen; the defaults are nnU-Net's.

    Args:
        forced: which samples are sure to see foreground. ``"share"``: the last ``round(batch_size x fraction)`` of each
            batch. ``"chance"``: each one with that probability; a batch of one needs it, as ``round(1 x 0.33)`` is 0.
        classes: ``"of_case"`` draws a case and then one of its classes; ``"of_data_set"`` a class and then one of the
            cases that hold it, so that a class that few scans show comes as often as one that all do.
        class_weights: how often a class is drawn beside the others, by label value; 1 where it is not named, 0 for
            never.
        content_fraction: a random patch of which a smaller share rises above its smallest value, such as one of air
            that was clipped, is drawn again, up to ten times; 0 takes any.

    Raises:
        UsageError: a word is not known, or a number is out of range.
    """

    forced: Literal["share", "chance"] = "share"
    classes: Literal["of_case", "of_data_set"] = "of_case"
    class_weights: Mapping[int, float] = field(default_factory=dict)
    content_fraction: float = 0.0

    def __post_init__(self) -> None:
        if self.forced not in ("share", "chance") or self.classes not in ("of_case", "of_data_set"):
            raise UsageError(
                f"Samples are forced by share or chance, and classes of_case or of_data_set, got {self.forced} and "
                f"{self.classes}; correct it."
            )
        if any(not 0 <= weight < float("inf") for weight in self.class_weights.values()):
            raise UsageError(f"The class weights {dict(self.class_weights)} are not all finite and at least 0.")
        if not 0.0 <= self.content_fraction < 1.0:
            raise UsageError(f"The content fraction {self.content_fraction} is not within 0 and 1; correct it.")

    def draw_class(self, classes: Sequence[int], generator: Generator) -> int | None:
        """One of the classes, each as often as its weight says; None where there are none, or all weigh 0.

        Example:
            >>> Sampling(class_weights={1: 0.0}).draw_class([1, 2], Generator())
            2
        """
        if not self.class_weights:
            return classes[int(torch.randint(len(classes), (), generator=generator))] if len(classes) else None
        weights = torch.tensor([self.class_weights.get(int(value), 1.0) for value in classes], dtype=torch.float64)
        if not weights.sum() > 0:
            return None
        return classes[int(torch.multinomial(weights, 1, generator=generator))]

    def has_content(self, image: NDArray[Any]) -> bool:
        """Whether enough of a window ``(channel, *spatial)`` rises above its smallest value, in any channel.

        Example:
            >>> Sampling(content_fraction=0.5).has_content(np.array([[0.0, 0.0, 1.0]]))
            False
        """
        if not self.content_fraction:
            return True
        lowest = image.min(axis=tuple(range(1, image.ndim)), keepdims=True)
        return float((image > lowest).any(axis=0).mean()) >= self.content_fraction


def holders_of(locations: Mapping[str, NDArray[np.int32]]) -> dict[int, tuple[str, ...]]:
    """Which cases hold each foreground class, from their locations ``(class, z, y, x)``.

    Example:
        >>> holders_of({"a": np.array([[2, 0, 0, 0]], np.int32), "b": np.array([[1, 0, 0, 0], [2, 0, 0, 0]], np.int32)})
        {1: ('b',), 2: ('a', 'b')}
    """
    present = {case_id: set(map(int, np.unique(rows[:, 0]))) for case_id, rows in locations.items()}
    classes = sorted(set().union(*present.values()))
    return {value: tuple(case_id for case_id in present if value in present[case_id]) for value in classes}
