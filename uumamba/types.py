"""Shapes that stand for a word. Axes are ``(batch, channel, *spatial)``; spatial order is that of the stored array."""

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
"""A method: ``objective(net, batch) -> scalar``. It owns neither the network nor the optimizer.

It returns ``(scalar, (logits, label))`` for an optimizer that climbs another loss or measures a distance of answers.

One that keeps something over steps may have ``begin_epoch(epoch)``, called at the start of each epoch and again where a
run is resumed inside it, and ``after_step(net)``, called once after each step of the optimizer. What it keeps belongs
into its ``state_dict``, as tensors and plain values.
"""


class Method(Protocol):
    """What a domain-generalization method adds to the step of any optimizer, as ``UDIM`` does.

    One that keeps something over steps, such as their number, has ``state_dict()`` and ``load_state_dict(state)``, of
    tensors and plain values. By them a trainer resumes it, and counts a step once that had to be taken again. One that
    has ``numbers()`` tells by it, once an epoch, what the epoch's row of metrics says of it.
    """

    def at_weights(
        self, image: Tensor, label: Tensor, *, domains: Sequence[Any] | Tensor | None
    ) -> Callable[[], Tensor] | None:
        """The scalar whose gradient at the unclimbed weights is added; None adds nothing. Called once a step.

        Nothing is computed here: the scalar is, when it is called.

        Args:
            image: ``(batch, ...)``, all domains joined.
            label: ``(batch, ...)``.
            domains: one a sample, such as names, or the numbers of minibatches as ``(batch,)`` int64; None where they
                are not known.
        """
        ...
