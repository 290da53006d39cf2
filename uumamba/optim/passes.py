"""One forward and backward pass of a closure: scaled, synchronised or not, with or without a trace in statistics."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from uumamba.optim.foreach import add_gradients, put_gradients, take_gradients
from uumamba.optim.running_stats import frozen_running_statistics
from uumamba.runtime.errors import UsageError

Closure = Callable[[], Tensor | tuple[Tensor, Any]]
"""Runs the forward pass and returns the loss, or ``(loss, outputs)``."""

Ascent = Callable[[Any], Tensor]
"""The scalar to climb, from the outputs of the closure."""


AtWeights = Callable[[], Tensor] | Sequence[Callable[[], Tensor] | None]
"""Returns a scalar to add; several are added up, one graph at a time, and None among them adds nothing."""


@dataclass(frozen=True)
class Passes:
    """Runs closures so that a pass ends with the sum of its and earlier gradients in the parameters.

    Attributes:
        net: the network, if known: its running statistics are guarded, and its ``no_sync`` is used.
        scaler: multiplies losses before the backward pass; None where there is none or it is disabled.
    """

    net: nn.Module | None
    scaler: torch.amp.GradScaler | None

    def accumulate(
        self,
        closures: Sequence[Closure],
        params: Sequence[Tensor],
        gradients: list[Tensor | None],
        *,
        share: float = 1.0,
        synchronise: bool = False,
        **how: Any,
    ) -> tuple[list[Tensor], list[Any], list[Tensor | None]]:
        """Losses, outputs, and the given gradients plus ``share`` times those of the closures.

        Only the last pass is synchronised, which averages all of the sum. Other options are those of :meth:`run`.
        """
        losses, outputs = [], []
        for index, closure in enumerate(closures):
            last = index == len(closures) - 1
            onto = gradients if any(gradient is not None for gradient in gradients) else None
            loss, output = self.run(closure, params, onto=onto, share=share, synchronise=synchronise and last, **how)
            losses.append(loss)
            outputs.append(output)
            gradients = take_gradients(params)
        return losses, outputs, gradients

    def run(
        self,
        closure: Closure,
        params: Sequence[Tensor],
        *,
        onto: Sequence[Tensor | None] | None = None,
        share: float = 1.0,
        ascent: Ascent | None = None,
        synchronise: bool = False,
        count_statistics: bool = False,
    ) -> tuple[Tensor, Any]:
        """Forward and backward; parameters must hold no gradient before.

        Args:
            closure: returns the loss, or ``(loss, outputs)``, and may have run the backward pass itself.
            params: the optimizer's parameters.
            onto: earlier gradients, which are added; a synchronised pass averages the sum over ranks.
            share: factor of the gradient.
            ascent: scalar of the outputs whose gradient is taken in place of the loss's.
            synchronise: let data-parallel wrappers average gradients.
            count_statistics: let running statistics see this batch.

        Returns:
            The detached loss, not multiplied by anything, and the outputs (None without).
        """
        with (
            nullcontext() if count_statistics else frozen_running_statistics(self.net),
            nullcontext() if synchronise else self._alone(),
            torch.enable_grad(),
        ):
            loss, outputs = _split(closure())
            if any(param.grad is not None for param in params):
                self._accept_gradients(params, onto, share=share, ascent=ascent)
            else:
                self._backward(loss if ascent is None else ascent(outputs), params, onto, share=share)
        return loss.detach(), outputs

    @torch.no_grad()
    def replay(self, closures: Sequence[Closure]) -> list[Any]:
        """Outputs of forward passes that leave no trace: no gradients, no statistics, nothing synchronised."""
        with frozen_running_statistics(self.net), self._alone():
            return [_split(closure())[1] for closure in closures]

    def _backward(
        self, target: Tensor, params: Sequence[Tensor], onto: Sequence[Tensor | None] | None, *, share: float
    ) -> None:
        if not target.requires_grad:
            raise UsageError(
                "The closure's loss has no gradient and the closure left none; return the loss as a tensor that "
                "depends on the parameters, computed outside torch.no_grad."
            )
        if onto is not None:
            put_gradients(params, onto)
        # 0 * inf is NaN: a loss that is not finite makes its gradient so, which the finite check sees on every rank.
        target = target * (share + 0 * target.detach())
        (target if self.scaler is None else self.scaler.scale(target)).backward()

    def _accept_gradients(
        self,
        params: Sequence[Tensor],
        onto: Sequence[Tensor | None] | None,
        *,
        share: float,
        ascent: Ascent | None,
    ) -> None:
        """Take over what a torch-style closure, which ran backward itself, left in the parameters."""
        cure = "return the loss without calling backward, and the step does the rest."
        if self.scaler is not None:
            raise UsageError(f"The closure ran backward itself, so its gradients are not scaled; {cure}")
        if ascent is not None:
            raise UsageError(f"The closure ran backward itself, so there is no other loss left to climb; {cure}")
        if onto is not None and isinstance(self.net, DistributedDataParallel):
            raise UsageError(f"The closure ran backward itself, so earlier gradients missed the averaging; {cure}")
        if share != 1:
            torch._foreach_mul_([param.grad for param in params if param.grad is not None], share)
        if onto is not None:
            add_gradients(params, onto)

    def _alone(self) -> AbstractContextManager[Any]:
        """Each rank for itself, where the network is wrapped for data-parallel training."""
        no_sync = getattr(self.net, "no_sync", None)
        return nullcontext() if no_sync is None else no_sync()


def _split(result: Any) -> tuple[Tensor, Any]:
    """The loss and the outputs of what a closure returned."""
    loss, outputs = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UsageError(f"A closure must return the loss as a scalar tensor, or (loss, outputs); got {found}.")
    return loss, outputs
