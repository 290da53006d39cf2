"""What a domain-generalization method adds to a step, whether its batch goes through whole or in pieces."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

from torch import Tensor

from uumamba.types import Batch, Method


class MethodStep:
    r"""Asks a method for its scalars, of the pieces of one batch, as one step of the method.

    With B samples in K pieces of :math:`n_k`, each with its own images, labels and domains, a step adds

    .. math:: \sum_k \frac{n_k}{B}\, A(\mathrm{piece}_k)

    a scalar a piece, so that no two graphs stand in memory together. One piece is the method's own scalar bit for bit.

    **Equal** to the whole batch's, but for rounding, where A is a mean over samples. **Not equal** where samples of a
    batch meet: UDIM compares variances over voxels, averages over the domains of what it is given, and climbs along the
    slope of the piece. Such a step is that of smaller batches in what is added, and of the whole one in all else. All
    pieces are of one step: the method counts it once, and what it draws by the number of its steps, as UDIM does, it
    draws alike in each of them.

    Args:
        method: what it keeps over steps, in its ``state_dict`` if it has one, is small; it is copied at each step.
        entering: the context that its scalars are computed in, such as autocast, entered anew for each.

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
        >>> pieces = [({"image": torch.full((size,), 3.0 / size), "label": None}, size) for size in sizes]
        >>> sum(scalar() for scalar in MethodStep(method).of(pieces)), method.steps  # (2 * 3/2 + 1 * 3) / 3
        (tensor(2.), 1)
    """

    def __init__(self, method: Method, *, entering: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
        self.method = method
        self.entering = entering

    def of(self, pieces: Sequence[tuple[Batch, int]]) -> list[Callable[[], Tensor]] | None:
        """What the optimizer adds for these pieces, and each one's number of samples; None where that is nothing."""
        samples = sum(size for _, size in pieces)
        before = self.state()
        found: list[Callable[[], Tensor]] = []
        for index, (piece, size) in enumerate(pieces):
            if index:
                self.restore(before)
            scalar = self.method.at_weights(piece["image"], piece["label"], domains=piece.get("domain"))
            if scalar is not None:
                found.append(partial(self._scalar, scalar, size / samples))
        return found or None

    def state(self) -> dict[str, Any]:
        """A copy of what the method keeps over steps; empty where it keeps nothing."""
        state_dict = getattr(self.method, "state_dict", None)
        return deepcopy(state_dict()) if callable(state_dict) else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Bring the method to an earlier state; an empty one, as of a run without it, leaves it as it is."""
        load = getattr(self.method, "load_state_dict", None)
        if callable(load) and state:
            load(deepcopy(dict(state)))

    def numbers(self) -> dict[str, Any]:
        """What an epoch's row says of the method; nothing where it tells nothing."""
        numbers = getattr(self.method, "numbers", None)
        return numbers() if callable(numbers) else {}

    def _scalar(self, scalar: Callable[[], Tensor], weight: float) -> Tensor:
        with self.entering():
            value = scalar()
        return value if weight == 1 else weight * value
