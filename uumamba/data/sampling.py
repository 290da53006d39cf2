"""Choice of patches: share of foreground, class, and least content."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator

from uumamba.runtime.options import BelowOne, NonNegative, check_options

FOREGROUND_FRACTION = 0.33  # nnU-Net's
MARGIN = 1.0
"""Size of a patch's window in patches."""


@check_options
@dataclass(frozen=True)
class Sampling:
    """Choice of the samples of a batch; the defaults are nnU-Net's.

    Args:
        forced: samples that are centred on foreground. ``"share"``: the last ``round(batch_size x fraction)`` of each
            batch. ``"chance"``: each sample with probability ``fraction``, also in a batch of one, for which
            ``round(1 x 0.33)`` is 0.
        classes: ``"of_case"`` draws a case and then one of its classes; ``"of_data_set"`` draws a class and then one of
            the cases with this class, so that rare and common classes are equally frequent.
        class_weights: relative rate of a class, by label value; 1 for other classes, 0 for never.
        content_fraction: least share of voxels above the smallest value of a random patch. A patch with less, such as
            one of clipped air, is drawn again, up to ten times; 0 accepts any patch.

    Raises:
        UsageError: a word is unknown, or a number is out of range.
    """

    forced: Literal["share", "chance"] = "share"
    classes: Literal["of_case", "of_data_set"] = "of_case"
    class_weights: Mapping[int, NonNegative] = field(default_factory=dict)
    content_fraction: BelowOne = 0.0

    def draw_class(self, classes: Sequence[int], generator: Generator) -> int | None:
        """Draw a class in proportion to its weight.

        None if there is no class, or all weights are 0.

        Example:
            >>> Sampling(class_weights={1: 0.0}).draw_class([1, 2], Generator())
            2
        """
        if not self.class_weights:
            return classes[int(torch.randint(len(classes), (), generator=generator))] if len(classes) else None
        weights = torch.tensor([self.class_weights.get(int(value), 1.0) for value in classes], dtype=torch.float64)
        return classes[int(torch.multinomial(weights, 1, generator=generator))] if weights.sum() > 0 else None

    def has_content(self, image: NDArray[Any]) -> bool:
        """Return whether enough voxels are above the smallest value.

        The image is ``(channel, *spatial)``; a voxel counts if any channel is above its smallest value.

        Example:
            >>> Sampling(content_fraction=0.5).has_content(np.array([[0.0, 0.0, 1.0]]))
            False
        """
        if not self.content_fraction:
            return True
        lowest = image.min(axis=tuple(range(1, image.ndim)), keepdims=True)
        return float((image > lowest).any(axis=0).mean()) >= self.content_fraction


def group_cases_by_class(locations: Mapping[str, NDArray[np.int32]]) -> dict[int, tuple[str, ...]]:
    """List the cases of each foreground class.

    Locations are rows ``(class, z, y, x)``; those of background are no class.

    Example:
        >>> one, both = np.array([[2, 0, 0, 0]], np.int32), np.array([[1, 0, 0, 0], [2, 0, 0, 0]], np.int32)
        >>> group_cases_by_class({"a": one, "b": both})
        {1: ('b',), 2: ('a', 'b')}
    """
    present = {case_id: set(map(int, np.unique(rows[:, 0]))) - {0} for case_id, rows in locations.items()}
    return {
        value: tuple(case_id for case_id in present if value in present[case_id])
        for value in sorted(set().union(*present.values()))
    }
