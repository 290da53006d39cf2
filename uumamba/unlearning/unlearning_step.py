"""One optimizer step of unlearning."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from uumamba.runtime.errors import require
from uumamba.runtime.functional_pass import copied_buffers
from uumamba.runtime.network import bare_network
from uumamba.runtime.options import NO_CLASS, NonNegative, check_options
from uumamba.runtime.whole_step import WholeStepOptimizer
from uumamba.unlearning.cycled_batches import count_samples
from uumamba.unlearning.forget_losses import ForgetLoss, NetLoss
from uumamba.unlearning.smoothing import Smoothing

Loss = Annotated[Callable[[nn.Module, Any], Any], NO_CLASS]
"""Objective ``loss(net, batch) -> scalar``, a mean over the batch's samples.

As forget loss it may return ``(scalar, (logits, label))``.
"""


@dataclass(frozen=True)
class StepRecord:
    """Losses of one step, both at the weights before it.

    Attributes:
        step: number of the step, from 1.
        forget_loss: forget loss with its smoothing; for optimizers such as MSAM at their perturbed weights.
        retain_loss: retain loss without its weight; NaN for a retain weight of 0.
        is_skipped: whether the optimizer skipped the step, since a gradient was not finite.
    """

    step: int
    forget_loss: float
    retain_loss: float
    is_skipped: bool


class UnlearningStep:
    r"""Optimizer step on a forget loss and a retain loss.

    .. math:: w \leftarrow \mathrm{base}\big(w,\ \mathrm{member}(\nabla l_s)(w) + \gamma\, \nabla l_r(w)\big)

    with :math:`l_s` the forget loss :math:`l_f` or a smoothed form of it, and member the optimizer's rule: for SAM
    :math:`\nabla l_s(w + \epsilon)`. The gradient of the retain loss is always that at the original weights.

    A list of batches is one step accumulated over micro-batches; every sample counts equally, whatever the sizes. The
    optimizer's ``accumulation`` decides whether each micro-batch has a perturbation of its own. A penalty is that of
    each micro-batch, averaged.

    No pass changes running statistics or other buffers, so forget samples do not enter them; see
    :func:`renew_statistics` for networks with batch norms in training mode. The network's modes are the caller's.

    Args:
        forget_loss: a :class:`ForgetLoss`, or any objective that falls as the network forgets.
        retain_loss: objective of the retain batches, such as :class:`MeanLoss`.
        retain_weight: :math:`\gamma`; 0 leaves the retain batches out.
        smoothing: smoothed form of the forget loss; None for the loss itself.

    Raises:
        UsageError: ``retain_weight`` is negative or not finite.

    Example:
        >>> from functools import partial
        >>> from uumamba.optim import SAM
        >>> from uumamba.unlearning import NPO, MeanLoss
        >>> net, batch = nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1]))
        >>> optimizer = SAM(net.parameters(), partial(torch.optim.SGD, lr=0.1), rho=0.01, net=net)
        >>> step = UnlearningStep(NPO(net, beta=0.5), MeanLoss())
        >>> step(net, optimizer, [batch], [batch]).step
        1

    References:
        Fan et al., *Towards LLM Unlearning Resilient to Relearning Attacks*, ICML 2025, arXiv:2502.05374.
        Differs from the paper: none. Differs from its code: with accumulation every micro-batch counts, frozen
        parameters do not shift perturbations, and weights are restored from a copy.
    """

    @check_options
    def __init__(
        self,
        forget_loss: ForgetLoss | Loss,
        retain_loss: Loss,
        *,
        retain_weight: NonNegative = 1.0,
        smoothing: Smoothing | None = None,
    ) -> None:
        self.forget_loss, self.retain_loss = forget_loss, retain_loss
        self.retain_weight, self.smoothing = retain_weight, smoothing
        self.steps = 0

    def __call__(
        self, net: nn.Module, optimizer: WholeStepOptimizer, forget: Sequence[Any], retain: Sequence[Any] = ()
    ) -> StepRecord:
        """Run one step.

        Args:
            net: the network of the optimizer's parameters.
            optimizer: changes the weights.
            forget: micro-batches of samples to forget.
            retain: micro-batches of samples to retain; their number may differ.

        Raises:
            UsageError: there are no batches. Errors of a pass leave the weights unchanged.
        """
        require(
            self.smoothing is None or getattr(optimizer, "scaler", None) is None,
            "smoothing",
            got="an optimizer with a GradScaler",
            expected="gradients in bfloat16 or float32, since those inside a smoothing are not scaled",
            fix="leave the scaler or the smoothing out",
        )
        skipped, retained = optimizer.skipped_steps, list[Tensor]()
        loss = optimizer.step(self.closures(net, forget), at_weights=self.at_weights(net, retain, losses=retained))
        self.steps += 1
        retain_loss = float(torch.stack(retained).sum()) if retained else math.nan
        return StepRecord(self.steps, float(loss), retain_loss, optimizer.skipped_steps > skipped)

    def closures(self, net: nn.Module, forget: Sequence[Any]) -> list[Callable[[], Any]]:
        """Return the closures of a step; their mean is the forget loss.

        Args:
            net: the network.
            forget: micro-batches.
        """
        shares = _shares(forget, "forget")
        return [
            partial(self._forget, net, self._bind(batch), share * len(shares))
            for batch, share in zip(forget, shares, strict=True)
        ]

    def at_weights(
        self, net: nn.Module, retain: Sequence[Any], *, losses: list[Tensor] | None = None
    ) -> list[Callable[[], Tensor]] | None:
        """Return the weighted retain losses, or None for a weight of 0.

        Args:
            net: the network.
            retain: micro-batches.
            losses: gets the parts of the mean retain loss, detached.
        """
        if not self.retain_weight:
            return None
        shares = _shares(retain, "retain")
        return [partial(self._retain, net, batch, share, losses) for batch, share in zip(retain, shares, strict=True)]

    def _bind(self, batch: Any) -> NetLoss:
        if isinstance(self.forget_loss, ForgetLoss):
            return self.forget_loss.bind(batch)
        return partial(_call, self.forget_loss, batch)

    def _forget(self, net: nn.Module, loss: NetLoss, factor: float) -> Any:
        outputs: list[Any] = []

        def scalar(net: nn.Module) -> Tensor:
            result = loss(net)
            outputs.extend(result[1:] if isinstance(result, tuple) else ())
            return result[0] if isinstance(result, tuple) else result

        if self.smoothing is not None:
            value = self.smoothing(net, scalar, step=self.steps)
        else:
            with copied_buffers(bare_network(net)):
                value = scalar(net)
        value = value if factor == 1 else factor * value
        return (value, outputs[0]) if outputs else value

    def _retain(self, net: nn.Module, batch: Any, share: float, losses: list[Tensor] | None) -> Tensor:
        with copied_buffers(bare_network(net)):
            value = self.retain_loss(net, batch)
        if losses is not None:
            losses.append(share * value.detach())
        return self.retain_weight * share * value


def _call(loss: Loss, batch: Any, net: nn.Module) -> Any:
    return loss(net, batch)


def _shares(batches: Sequence[Any], name: str) -> list[float]:
    """Return each micro-batch's share of all samples."""
    require(batches, name, got="no batch", expected="at least one batch per step")
    if len(batches) == 1:
        return [1.0]
    sizes = [count_samples(batch) for batch in batches]
    return [size / sum(sizes) for size in sizes]
