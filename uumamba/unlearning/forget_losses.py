"""Losses whose descent makes a network forget."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.runtime.errors import require
from uumamba.runtime.network import bare_network
from uumamba.runtime.options import Positive, check_options
from uumamba.unlearning.per_sample_loss import (
    MeanLoss,
    PerSampleLoss,
    Predict,
    per_sample_cross_entropy,
    predict_batch,
)

NetLoss = Callable[[nn.Module], Any]
"""Loss of one batch as a function of the network: a scalar, or ``(scalar, (logits, label))``."""


class ForgetLoss(ABC):
    """Base of the forget losses, objectives bound to a batch first.

    A step computes its forget loss several times on one batch, at other weights. :meth:`bind` does once what does not
    depend on the weights.

    Args:
        per_sample_loss: loss of each sample, such as :func:`per_sample_cross_entropy`.
        predict: ``predict(net, batch)`` returns logits and label.
        outputs: also return ``(logits, label)``, for an optimizer with a trust region (TRAM).
    """

    @check_options
    def __init__(self, per_sample_loss: PerSampleLoss, predict: Predict, outputs: bool) -> None:
        self.loss, self.outputs = MeanLoss(per_sample_loss, predict=predict), outputs

    def bind(self, batch: Any) -> NetLoss:
        """Return the loss of a batch as a function of the network."""
        score = self._make_score(batch)

        def loss(net: nn.Module) -> Tensor | tuple[Tensor, Any]:
            losses, outputs = self.loss.with_outputs(net, batch)
            value = score(losses)
            return (value, outputs) if self.outputs else value

        return loss

    def __call__(self, net: nn.Module, batch: Any) -> Any:
        """Return the loss of a batch; with ``outputs`` also ``(logits, label)``."""
        return self.bind(batch)(net)

    @abstractmethod
    def _make_score(self, batch: Any) -> Callable[[Tensor], Tensor]:
        """Return the forget loss as a function of the samples' losses."""


class GradientDifference(ForgetLoss):
    r"""Negative mean loss of the forget samples.

    .. math:: l_f = -\frac{1}{B} \sum_i \mathrm{CE}_\theta(x_i, y_i)

    Gradient ascent on the forget set; the difference of gradients is that of the whole step, which descends on the
    retain loss. The loss has no lower bound: too many steps destroy the network. NPO is bounded.

    Args:
        per_sample_loss: ``per_sample_loss(logits, label)`` returns ``(batch,)``; the token or voxel mean of the cross
            entropy by default.
        predict: ``predict(net, batch)`` returns logits and label.
        outputs: also return ``(logits, label)``, for an optimizer with a trust region (TRAM).

    Example:
        >>> GradientDifference()(nn.Identity(), (torch.zeros(3, 2), torch.tensor([0, 1, 1])))  # -ln 2
        tensor(-0.6931)

    References:
        Maini et al., *TOFU: A Task of Fictitious Unlearning for LLMs*, COLM 2024, arXiv:2401.06121.
        Differs from the paper: samples weigh equally, whatever their number of tokens.
    """

    @check_options
    def __init__(
        self,
        *,
        per_sample_loss: PerSampleLoss = per_sample_cross_entropy,
        predict: Predict = predict_batch,
        outputs: bool = False,
    ) -> None:
        super().__init__(per_sample_loss, predict, outputs)

    def _make_score(self, batch: Any) -> Callable[[Tensor], Tensor]:
        return lambda losses: -losses.mean()


class NPO(ForgetLoss):
    r"""Negative preference optimisation: bounded ascent against a reference network.

    .. math:: l_f = -\frac{2}{\beta B} \sum_i
        \log \sigma\big(\beta\, (\mathrm{CE}_\theta(x_i, y_i) - \mathrm{CE}_\mathrm{ref}(x_i, y_i))\big), \qquad
        \nabla l_f = -\frac{1}{B} \sum_i W_i\, \nabla \mathrm{CE}_\theta(x_i, y_i), \quad
        W_i = 2\, \sigma\big(-\beta\, (\mathrm{CE}_\theta - \mathrm{CE}_\mathrm{ref})\big)

    A sample's weight :math:`W_i` is 1 while its loss is the reference's, and falls to 0 once it is forgotten. For
    :math:`\beta \to 0` the gradient is that of :class:`GradientDifference`. Choose :math:`\beta` by the scale of the
    loss: with a token mean and 0.015 the weight is 0.96 at a loss of 5 above the reference.

    The weight is per sample: a batch of 4 equals four accumulated batches of 1. :meth:`bind` computes the reference's
    losses once per batch, without a gradient and in evaluation mode.

    Args:
        reference: the network before unlearning, of which a frozen copy is made; or a function of the batch that
            returns stored losses ``(batch,)`` of the reference, without a copy in memory, such as
            ``lambda batch: batch["reference_loss"]`` with values from :func:`collect_losses`.
        beta: :math:`\beta`.
        per_sample_loss: ``per_sample_loss(logits, label)`` returns ``(batch,)``; the token or voxel mean of the cross
            entropy by default.
        predict: ``predict(net, batch)`` returns logits and label.
        outputs: also return ``(logits, label)``, for an optimizer with a trust region (TRAM).

    Raises:
        UsageError: ``beta`` is not positive; or, from the step, the stored losses do not fit the batch.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> npo = NPO(net, beta=0.1)
        >>> npo(net, (torch.eye(2), torch.tensor([0, 1])))  # 2 / 0.1 * ln 2 at the reference's weights
        tensor(13.8629, grad_fn=<MulBackward0>)

    References:
        Zhang et al., *Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning*, COLM 2024,
        arXiv:2404.05868.
        Differs from the paper: the log-probability is the mean over tokens, not their sum, as in the code of Fan et
        al., ICML 2025, arXiv:2502.05374. Differs from that code: the weight is per sample, there it is that of the
        batch's mean loss.
    """

    @check_options
    def __init__(
        self,
        reference: nn.Module | Callable[[Any], Tensor],
        *,
        beta: Positive = 0.1,
        per_sample_loss: PerSampleLoss = per_sample_cross_entropy,
        predict: Predict = predict_batch,
        outputs: bool = False,
    ) -> None:
        super().__init__(per_sample_loss, predict, outputs)
        self.beta = beta
        self._past = reference
        if isinstance(reference, nn.Module):  # a copy: with the trained network itself all weights would stay 1
            self._past = partial(self.loss.per_sample, deepcopy(bare_network(reference)).eval().requires_grad_(False))

    def _make_score(self, batch: Any) -> Callable[[Tensor], Tensor]:
        with torch.no_grad():
            past = self._past(batch)

        def score(losses: Tensor) -> Tensor:
            require(
                past.shape == losses.shape,
                "reference",
                got=f"losses of shape {tuple(past.shape)}",
                expected=f"one loss per sample, shape {tuple(losses.shape)}",
            )
            return -2 / self.beta * F.logsigmoid(self.beta * (losses - past.to(losses))).mean()

        return score
