"""Forward and backward passes of closures."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from uumamba.optim.foreign_scaler import uses_scaler
from uumamba.optim.restore import frozen_running_statistics
from uumamba.optim.tensors import add_gradients, put_gradients, take_gradients
from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.network import finest_logits

# Arguments of SharpnessAware.step, which documents them.
Closure = Callable[[], Tensor | tuple[Tensor, Any]]
Ascent = Callable[[Any], Tensor]
AtWeights = Callable[[], Tensor] | Sequence[Callable[[], Tensor] | None]

SCALED = "MulBackward0"  # the last function of a loss that a scaler multiplied

# Detached losses, outputs (None for a closure without) and summed gradients of some closures.
PassResults = tuple[list[Tensor], list[Any], list[Tensor | None]]


@dataclass(frozen=True)
class Passes:
    """Passes of closures through one network.

    Attributes:
        net: the network, if known: its running statistics are restored, and its ``no_sync`` is used.
        scaler: multiplies losses before the backward pass; None without an enabled scaler.
        params: the optimizer's parameters that require a gradient; between calls their gradients are None.
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
    ) -> PassResults:
        """Run closures forward and backward and accumulate their gradients.

        Args:
            closures: each returns the loss, or ``(loss, outputs)``, and may have run the backward pass itself.
            gradients: earlier gradients, to which the new ones are added.
            share: factor of the new gradients.
            ascent: scalar of the outputs whose gradient replaces the loss's gradient.
            synchronise: let a data-parallel wrapper all-reduce the sum over ranks, in the last pass.
            count_statistics: let running statistics count these batches.

        Returns:
            The losses without any factor, the outputs, and the sum of the gradients.
        """
        losses, outputs = [], []
        gradients = gradients or [None] * len(self.params)
        for index, closure in enumerate(closures, start=1):
            with (
                nullcontext() if count_statistics else frozen_running_statistics(self.net),
                nullcontext() if synchronise and index == len(closures) else self._no_sync(),
                torch.enable_grad(),
            ):
                loss, output = _split_result(closure())
                self._add_gradients(closure, loss, output, gradients, share=share, ascent=ascent)
            losses.append(loss.detach())
            del loss  # the next pass needs the memory of its graph
            outputs.append(output)
            gradients = take_gradients(self.params)
            _check_dense(gradients)
        return losses, outputs, gradients

    @torch.no_grad()
    def replay(self, closures: Sequence[Closure]) -> list[Any]:
        """Return the outputs of forward passes.

        The passes compute no gradient, change no running statistics and are not synchronised.
        """
        with frozen_running_statistics(self.net), self._no_sync():
            return [_split_result(closure())[1] for closure in closures]

    def _add_gradients(
        self,
        closure: Closure,
        loss: Tensor,
        output: Any,
        gradients: Sequence[Tensor | None],
        *,
        share: float,
        ascent: Ascent | None,
    ) -> None:
        """Add the gradients of the loss or ascent loss to earlier ones."""
        ran_backward = any(param.grad is not None for param in self.params)
        if ran_backward or (loss.grad_fn is not None and loss.grad_fn.name() == SCALED):
            require(
                not uses_scaler(closure),
                "closure",
                got="a loss scaled by a GradScaler",
                expected="the loss in true units, since step scales, unscales and updates",
                fix="write SAM(params, base, scaler=scaler) and return the loss, without scaler.scale and backward",
            )
        if ran_backward:
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
            # 0 * inf is NaN: a loss that is not finite gives NaN gradients, which the finite check sees on every rank.
            target = target * (share + 0 * target.detach())
            (target if self.scaler is None else self.scaler.scale(target)).backward()

    def _accept_gradients(self, gradients: Sequence[Tensor | None], *, share: float, ascent: Ascent | None) -> None:
        """Accumulate gradients of a torch-style closure, which ran backward itself."""
        wrapped = isinstance(self.net, DistributedDataParallel)
        require(
            self.scaler is None and ascent is None and not (wrapped and any(found is not None for found in gradients)),
            "closure",
            got="a closure that ran backward itself",
            expected="a closure without a backward pass, with a scaler, an ascent or sums over ranks",
            fix="return the loss without calling backward",
        )
        if share != 1:
            torch._foreach_mul_([param.grad for param in self.params if param.grad is not None], share)
        add_gradients(self.params, gradients)

    def _no_sync(self) -> AbstractContextManager[Any]:
        """Keep a data-parallel wrapper from all-reducing gradients."""
        no_sync = getattr(self.net, "no_sync", None)
        return nullcontext() if no_sync is None else no_sync()


def _check_dense(gradients: Sequence[Tensor | None]) -> None:
    """Raise for a sparse gradient, which has no norm."""
    for gradient in gradients:
        require(
            gradient is None or gradient.layout == torch.strided,
            "params",
            got="a sparse gradient",
            expected="dense gradients",
            fix="write nn.Embedding(..., sparse=False)",
        )


def _split_result(result: Any) -> tuple[Tensor, Any]:
    """Split a closure's result into the loss and the outputs."""
    loss, outputs = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else loss
        raise UsageError("closure", got=found, expected="a scalar loss tensor, or (loss, outputs)")
    return loss, outputs


def read_logits(outputs: Any) -> Tensor:
    """Return the finest logits in a closure's outputs.

    Args:
        outputs: logits, ``(logits, label)``, or either with a list of logits, finest first.

    Raises:
        UsageError: the outputs hold no logits.

    Example:
        >>> read_logits(([torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 4, 4)], torch.zeros(2, 8, 8))).shape
        torch.Size([2, 3, 8, 8])
    """
    try:
        return finest_logits(outputs[0] if isinstance(outputs, tuple) and outputs else outputs)
    except UsageError:
        raise UsageError(
            "closure",
            got=f"a loss and outputs of type {type(outputs).__name__}",
            expected="(loss, logits) or (loss, (logits, label)), logits of shape (batch, classes, ...)",
        ) from None


def read_output_label(outputs: Any) -> Tensor:
    """Return the label in a closure's outputs.

    Raises:
        UsageError: the outputs are not ``(logits, label)``.

    Example:
        >>> read_output_label((torch.zeros(2, 3), torch.tensor([0, 2])))
        tensor([0, 2])
    """
    if isinstance(outputs, tuple) and len(outputs) == 2 and isinstance(outputs[1], Tensor):
        return outputs[1]
    raise UsageError(
        "closure", got=f"a loss and outputs of type {type(outputs).__name__}", expected="(loss, (logits, label))"
    )
