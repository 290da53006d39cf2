"""Type names of arrays, tensors and batches.

Axes are ``(batch, channel, *spatial)`` in stored axis order.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Logits = Tensor | Sequence[Tensor]
"""``(batch, classes, *spatial)``, or a list of them, finest first, under deep supervision."""

Batch = dict[str, Any]
"""``{"image": B C *S float32, "label": B 1 *S int64, "domain": [str], "case_id": [str], "seed": B int64}``."""

SpacingMm = tuple[float, ...]
"""Voxel edge lengths in millimetres, in the order of the array's axes."""

Mask = NDArray[np.bool_]
LabelMap = NDArray[np.uint8]
Objective = Callable[..., Tensor | tuple[Tensor, Any]]
"""Training loss as a function: ``objective(net, batch) -> scalar``.

An objective owns neither the network nor the optimizer. For an optimizer with an ascent loss or a trust region it
returns ``(scalar, (logits, label))``.

An objective that follows the training, such as MESA with its teacher, is also a
:class:`uumamba.runtime.observer.Observer`. Its state is part of its own ``state_dict``, as tensors and plain values.
"""


class Method(Protocol):
    """Domain-generalization method with a term per optimizer step, such as ``UDIM``.

    A class that inherits from this one has no state by default. A trainer uses the state, of tensors and plain values,
    to resume and to count a repeated step once. A method that adds values to an epoch's row of metrics is also a
    :class:`uumamba.runtime.observer.Observer`.
    """

    def at_weights(
        self, image: Tensor, label: Tensor, *, domains: Sequence[Any] | Tensor | None
    ) -> Callable[[], Tensor] | None:
        """Return a function for the penalty at the original weights.

        This is called once per micro-batch. The returned function computes a scalar whose gradient at the original
        weights is added to the step's gradient; None adds nothing.

        Args:
            image: ``(batch, ...)`` of all domains.
            label: ``(batch, ...)``.
            domains: domain of each sample, such as names, or the numbers of minibatches as ``(batch,)`` int64; None
                where unknown.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state, empty by default.

        It is copied at each step, so it should be small.
        """
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state that is not empty."""
        return
