"""Optimizers whose step is a whole training step."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from uumamba.runtime.errors import require


class WholeStepOptimizer(Protocol):
    """Interface of uumamba.optim's optimizers, for packages that do not import it."""

    param_groups: list[dict[str, Any]]
    skipped_steps: int

    def step(
        self,
        closure: Callable[[], Any] | Sequence[Callable[[], Any]],
        ascent: Callable[[Any], Tensor] | None = None,
        at_weights: Callable[[], Tensor] | Sequence[Callable[[], Tensor] | None] | None = None,
    ) -> Tensor:
        """Zero gradients, run forward and backward passes, update; return the loss."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a stored state."""
        ...


def check_whole_step(optimizer: Any) -> None:
    """Raise unless ``optimizer.step(closure)`` runs the backward pass itself.

    One of torch's own optimizers would run the closure and change no weight.

    Raises:
        UsageError: the optimizer's step has no argument ``at_weights``.

    Example:
        >>> import torch
        >>> check_whole_step(torch.optim.SGD([torch.zeros(1)], lr=0.1))
        Traceback (most recent call last):
        ...
        uumamba.runtime.errors.UsageError: optimizer: got SGD, expected an optimizer of uumamba.optim. ...
    """
    name, step = type(optimizer).__name__, getattr(optimizer, "step", None)
    require(
        callable(step) and "at_weights" in inspect.signature(step).parameters,
        "optimizer",
        got=name,
        expected="an optimizer of uumamba.optim",
        fix=f"wrap it: partial(Plain, base=partial({name}, lr=...))",
    )
