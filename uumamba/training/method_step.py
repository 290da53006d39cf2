"""Penalty of a domain-generalization method in a step, for a whole batch or micro-batches."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

from torch import Tensor

from uumamba.types import Batch, Method


class MethodStep:
    r"""Computes a method's scalars for the micro-batches of one batch, as one step of the method.

    With B samples in K micro-batches of :math:`n_k`, each with its own images, labels and domains, a step adds

    .. math:: \sum_k \frac{n_k}{B}\, A(\mathrm{micro\text{-}batch}_k)

    one scalar at a time, so that no two graphs are in memory together. A single micro-batch gives the method's own
    scalar bit for bit.

    **Equal** to the whole batch's, up to rounding, if A is a mean over samples. **Not equal** if A compares samples of
    a batch: UDIM compares variances over voxels, averages over the domains that it is given, and climbs along the slope
    of the micro-batch. In such a step the penalty is that of smaller batches, and all else that of the whole one. All
    micro-batches belong to one step: the method counts it once, and what it draws by its step number, as UDIM does, is
    the same in each of them.

    Args:
        method: its ``state_dict``, if it has one, is small; it is copied at each step.
        entering: the context of its scalars, such as autocast, entered again for each.

    Example:
        >>> import torch
        >>> class MeanOfImage:
        ...     steps = 0
        ...     def at_weights(self, image, label, *, domains):
        ...         self.steps += 1
        ...         return lambda: image.mean()
        ...     def state_dict(self):
        ...         return {"steps": self.steps}
        ...     def load_state_dict(self, state):
        ...         self.steps = state["steps"]
        >>> method = MeanOfImage()
        >>> sizes = (2, 1)
        >>> parts = [({"image": torch.full((size,), 3.0 / size), "label": None}, size) for size in sizes]
        >>> sum(scalar() for scalar in MethodStep(method).scalars(parts)), method.steps  # (2 * 3/2 + 1 * 3) / 3
        (tensor(2.), 1)
    """

    def __init__(self, method: Method, *, entering: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
        self.method = method
        self.entering = entering

    def scalars(self, parts: Sequence[tuple[Batch, int]]) -> list[Callable[[], Tensor]] | None:
        """Return the scalars to add for these micro-batches, each given with its size; None if there are none."""
        samples = sum(size for _, size in parts)
        before = self.state()
        found: list[Callable[[], Tensor]] = []
        for index, (part, size) in enumerate(parts):
            if index:
                self.restore(before)
            scalar = self.method.at_weights(part["image"], part["label"], domains=part.get("domain"))
            if scalar is not None:
                found.append(partial(self._scalar, scalar, size / samples))
        return found or None

    def state(self) -> dict[str, Any]:
        """Return a copy of the method's state; empty if it has none."""
        state_dict = getattr(self.method, "state_dict", dict)
        return deepcopy(state_dict())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore an earlier state; an empty one, of a run without the method, changes nothing."""
        if state:
            self.method.load_state_dict(deepcopy(dict(state)))  # type: ignore[attr-defined]  # it has a state_dict

    def numbers(self) -> dict[str, Any]:
        """Return the method's numbers for an epoch's row, if it has any."""
        return getattr(self.method, "numbers", dict)()

    def _scalar(self, scalar: Callable[[], Tensor], weight: float) -> Tensor:
        with self.entering():
            value = scalar()
        return value if weight == 1 else weight * value
