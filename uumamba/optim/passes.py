"""Forward and backward passes of closures: scaled, synchronised, counted in running statistics."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from uumamba.optim.restore import frozen_running_statistics
from uumamba.optim.tensors import add_gradients, put_gradients, take_gradients
from uumamba.runtime.errors import UsageError, require

Closure = Callable[[], Tensor | tuple[Tensor, Any]]
"""Runs the forward pass and returns the loss, or ``(loss, outputs)``."""

Ascent = Callable[[Any], Tensor]
"""The scalar to climb, from the outputs of the closure."""

AtWeights = Callable[[], Tensor] | Sequence[Callable[[], Tensor] | None]
"""Returns a scalar to add; several are added up, one graph at a time, and None in a list adds nothing."""

# Detached losses, outputs (None without) and gradients of some closures.
Found = tuple[list[Tensor], list[Any], list[Tensor | None]]


@dataclass(frozen=True)
class Passes:
    """Passes of closures through one network.

    Attributes:
        net: the network, if known: its running statistics are guarded, and its ``no_sync`` is used.
        scaler: multiplies losses before the backward pass; None where there is none or it is disabled.
        params: the optimizer's parameters that require a gradient; between calls they hold none.
    """

    net: nn.Module | None
    scaler: torch.amp.GradScaler | None
    params: Sequence[Tensor]

    def accumulate(
        self,
        closures: Sequence[Closure],
        gradients: list[Tensor | None] | None = None,
        *,
        share: float = 1.0,
        ascent: Ascent | None = None,
        synchronise: bool = False,
        count_statistics: bool = False,
    ) -> Found:
        """Run closures forward and backward and add up their gradients.

        Args:
            closures: each returns the loss, or ``(loss, outputs)``, and may have run the backward pass itself.
            gradients: earlier gradients, to which the new ones are added.
            share: factor of the new gradients.
            ascent: scalar of the outputs whose gradient is taken in place of the loss's.
            synchronise: let a data-parallel wrapper average the sum over ranks, in the last pass.
            count_statistics: let running statistics count these batches.

        Returns:
            The losses without any factor, the outputs, and the sum of the gradients.
        """
        losses, outputs = [], []
        gradients = gradients or [None] * len(self.params)
        for index, closure in enumerate(closures, start=1):
            with (
                nullcontext() if count_statistics else frozen_running_statistics(self.net),
                nullcontext() if synchronise and index == len(closures) else self._unsynchronised(),
                torch.enable_grad(),
            ):
                loss, output = self._run(closure, gradients, share=share, ascent=ascent)
            losses.append(loss)
            outputs.append(output)
            gradients = take_gradients(self.params)
        return losses, outputs, gradients

    @torch.no_grad()
    def replay(self, closures: Sequence[Closure]) -> list[Any]:
        """Return the outputs of forward passes without gradients, counted statistics or synchronisation."""
        with frozen_running_statistics(self.net), self._unsynchronised():
            return [_split_result(closure())[1] for closure in closures]

    def _run(
        self, closure: Closure, gradients: Sequence[Tensor | None], *, share: float, ascent: Ascent | None
    ) -> tuple[Tensor, Any]:
        loss, output = _split_result(closure())
        if any(param.grad is not None for param in self.params):
            self._accept_gradients(gradients, share=share, ascent=ascent)
        else:
            target = loss if ascent is None else ascent(output)
            require(
                target.requires_grad,
                "closure",
                got="a loss without a gradient",
                expected="a loss that depends on the parameters, computed outside torch.no_grad",
            )
            put_gradients(self.params, gradients)
            # 0 * inf is NaN: a loss that is not finite gives such gradients, which the finite check sees on every rank.
            target = target * (share + 0 * target.detach())
            (target if self.scaler is None else self.scaler.scale(target)).backward()
        return loss.detach(), output

    def _accept_gradients(self, gradients: Sequence[Tensor | None], *, share: float, ascent: Ascent | None) -> None:
        """Add up the gradients of a torch-style closure, which ran backward itself."""
        wrapped = isinstance(self.net, DistributedDataParallel)
        require(
            self.scaler is None and ascent is None and not (wrapped and any(found is not None for found in gradients)),
            "closure",
            got="one that ran backward itself",
            expected="one that leaves it to the step, as a scaler, an ascent and sums over ranks need it",
            fix="return the loss without calling backward",
        )
        if share != 1:
            torch._foreach_mul_([param.grad for param in self.params if param.grad is not None], share)
        add_gradients(self.params, gradients)

    def _unsynchronised(self) -> AbstractContextManager[Any]:
        """Keep a data-parallel wrapper from averaging gradients."""
        no_sync = getattr(self.net, "no_sync", None)
        return nullcontext() if no_sync is None else no_sync()


def _split_result(result: Any) -> tuple[Tensor, Any]:
    """Return the loss and the outputs that a closure returned."""
    loss, outputs = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else loss
        raise UsageError("closure", got=found, expected="the loss as a scalar tensor, or (loss, outputs)")
    return loss, outputs


def read_logits(outputs: Any) -> Tensor:
    """Return the finest logits in a closure's outputs.

    Args:
        outputs: logits, ``(logits, label)``, or either with a list of logits, finest first.

    Raises:
        UsageError: there are none.

    Example:
        >>> read_logits(([torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 4, 4)], torch.zeros(2, 8, 8))).shape
        torch.Size([2, 3, 8, 8])
    """
    logits = outputs[0] if isinstance(outputs, tuple) and outputs else outputs
    if isinstance(logits, list) and logits:
        logits = logits[0]
    if not isinstance(logits, Tensor) or logits.ndim < 2:
        raise UsageError(
            "closure",
            got=f"outputs of type {type(outputs).__name__} beside the loss",
            expected="(loss, logits) or (loss, (logits, label)), logits of shape (batch, classes, ...)",
        )
    return logits
