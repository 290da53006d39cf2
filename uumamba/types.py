"""Type names of arrays, tensors and batches. Axes are ``(batch, channel, *spatial)`` in stored axis order."""

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
"""Training loss as a function: ``objective(net, batch) -> scalar``. It owns neither the network nor the optimizer.

For an optimizer with an ascent loss or a trust region it returns ``(scalar, (logits, label))``.

An objective with state may have ``begin_epoch(epoch)``, called at the start of each epoch and again when a run resumes
within it, and ``after_step(net)``, called once after each optimizer step. Its state is part of its ``state_dict``, as
tensors and plain values.
"""


class Method(Protocol):
    """Domain-generalization method that adds a term to each optimizer step, such as ``UDIM``.

    A method with state has ``state_dict()`` and ``load_state_dict(state)``, of tensors and plain values; a trainer
    resumes by them, and counts a repeated step once. ``numbers()``, if present, returns the values to add to an epoch's
    row of metrics.
    """

    def at_weights(
        self, image: Tensor, label: Tensor, *, domains: Sequence[Any] | Tensor | None
    ) -> Callable[[], Tensor] | None:
        """Return the scalar whose gradient at the original weights is added; None adds nothing. Called once per step.

        Nothing is computed here: the scalar is, when it is called.

        Args:
            image: ``(batch, ...)``, all domains joined.
            label: ``(batch, ...)``.
            domains: one a sample, such as names, or the numbers of minibatches as ``(batch,)`` int64; None where they
                are not known.
        """
        ...
