"""Penalty of a domain-generalization method in an optimizer step."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

from torch import Tensor

from uumamba.types import Batch, Method


class MethodStep:
    r"""Penalty of a method over the micro-batches of one step.

    With B samples in K micro-batches of :math:`n_k`, each with its own images, labels and domains, a step adds

    .. math:: \sum_k \frac{n_k}{B}\, A(\mathrm{micro\text{-}batch}_k)

    one scalar at a time, so that only one graph is in memory. A single micro-batch gives the method's own scalar bit
    for bit.

    **Equal** to the penalty of the whole batch, up to rounding, if A is a mean over samples. **Not equal** if A
    compares samples of a batch: UDIM compares variances over voxels, averages over the domains of the micro-batch, and
    perturbs the weights along the gradient of the micro-batch. All micro-batches belong to one step: the method counts
    the step once, and random numbers keyed by the step number, as in UDIM, are the same in each micro-batch.

    Args:
        method: its ``state_dict``, if present, should be small; it is copied at each step.
        entering: makes the context of a scalar, such as autocast, entered again for each scalar.

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
        """Return the scalars to add to a step, or None without any.

        Args:
            parts: micro-batches of one batch, with their numbers of samples.
        """
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
        """Return a copy of the method's state, empty without ``state_dict``."""
        return deepcopy(getattr(self.method, "state_dict", dict)())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore an earlier state; an empty state changes nothing."""
        if state:
            self.method.load_state_dict(deepcopy(dict(state)))  # type: ignore[attr-defined]  # has a state_dict

    def numbers(self) -> dict[str, Any]:
        """Return the method's numbers for an epoch's row."""
        return getattr(self.method, "numbers", dict)()

    def _scalar(self, scalar: Callable[[], Tensor], weight: float) -> Tensor:
        with self.entering():
            value = scalar()
        return value if weight == 1 else weight * value
