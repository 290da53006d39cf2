"""Plain training behind the family's interface."""

from collections.abc import Callable, Iterable
from typing import Any, Unpack

from torch.optim import Optimizer

from uumamba.optim.engine import SharpnessAware
from uumamba.optim.groups import EngineOptions


class Plain(SharpnessAware):
    """Base optimizer alone: one pass and one step, behind the family's interface.

    A trainer holds it like any other member. Scaling, clipping, the finite check, accumulation and ``at_weights`` are
    the engine's; ``ascent`` has no effect.

    Args:
        params: parameters, named parameters or groups, as any torch optimizer takes them.
        base: any callable from parameters to an optimizer.
        engine: options of every member, such as ``net`` and ``scaler``; see :class:`EngineOptions`.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> weight = torch.nn.Parameter(torch.tensor([2.0]))
        >>> optimizer = Plain([weight], partial(torch.optim.SGD, lr=0.25))
        >>> optimizer.step(lambda: (weight**2).sum())
        tensor(4.)
        >>> weight.data
        tensor([1.])
    """

    def __init__(self, params: Iterable[Any], base: Callable[..., Optimizer], **engine: Unpack[EngineOptions]) -> None:
        super().__init__(params, base, **engine)
