"""Plain training with the interface of uumamba.optim."""

from typing import Unpack

from uumamba.optim.engine import SharpnessAware
from uumamba.optim.groups import BaseFactory, EngineOptions, Params


class Plain(SharpnessAware):
    """Base optimizer without perturbation, with the interface of uumamba.optim.

    One pass per step. A trainer uses ``Plain`` like any optimizer of uumamba.optim. Scaling, clipping, the finite
    check, accumulation and ``at_weights`` are the engine's; ``ascent`` has no effect.

    Args:
        params: parameters, named parameters or groups, as any torch optimizer takes them.
        base: any callable from parameters to an optimizer.
        engine: options of every optimizer of uumamba.optim, such as ``net`` and ``scaler``; see :class:`EngineOptions`.

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

    accepts_ascent = False
    unused_options = ("perturb", "perturbation")

    def __init__(self, params: Params, base: BaseFactory, **engine: Unpack[EngineOptions]) -> None:
        super().__init__(params, base, **engine)
