"""Memory-efficient sharpness-aware training (MESA), with a moving average as teacher."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn, no_grad
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from uumamba.optim.output_divergence import Form, average_valid, find_valid, softened_divergence
from uumamba.runtime.batch_parts import read_pair
from uumamba.runtime.network import bare_network, finest_logits, read_loss_weights
from uumamba.runtime.observer import Observer, Row, RunView
from uumamba.runtime.options import BelowOne, NonNegative, NonNegativeInt, Positive, check_options
from uumamba.types import Batch

PASSES_WITHOUT_STEP = 200
"""Calls without :meth:`MESA.after_step` that are surely no accumulated step."""


class MESA(nn.Module, Observer):
    r"""Loss plus divergence from a moving-average teacher.

    .. math::
        L = \mathrm{loss}(z, y) + \lambda \tau^2\, \mathrm{mean}\ \mathrm{KL}\big(\mathrm{softmax}(z' / \tau)
            \,\Vert\, \mathrm{softmax}(z / \tau)\big), \qquad w' \leftarrow d\, w' + (1 - d)\, w

    with z the network's logits and z' the logits of the teacher w' for the same, already augmented input. The
    divergence is a sum over classes and a mean over samples and voxels, so one formula is for classification and
    segmentation; under deep supervision it uses the finest logits. One more forward pass per step, without gradient,
    and a copy of the weights; with ``weight=0`` there is no such pass and no change of the loss.

    The teacher runs in evaluation mode, as published: its outputs must not depend on dropout or on the other samples of
    a batch, and its statistics, averaged with its weights, must not change in a forward pass. It changes only in
    :meth:`after_step`, so both passes of a sharpness-aware optimizer have the same teacher. In a trainer MESA calls it
    as an observer of the run; other loops can use
    ``optimizer.register_step_post_hook(lambda *_: objective.after_step(net))``. The teacher starts at the first weights
    of the network; after the first step it is the network again, and then it averages about :math:`1 / (1 - d)` steps:
    5000 by default, so lower ``decay`` for short runs.
    Its weights require no gradient and are part of the state.

    Args:
        loss: called as ``loss(logits, label)``; its own parameters may learn.
        net: the network; a data-parallel wrapper and a compiled network are unwrapped for the copy.
        weight: factor of the divergence, :math:`\lambda`.
        temperature: temperature of both distributions, :math:`\tau`.
        decay: decay d of the teacher's weights, at least 0 and below 1.
        start_step: steps before the divergence counts; the teacher averages from the first step.
        form: maps logits to probabilities, ``"softmax"`` or ``"sigmoid"`` for outputs that may overlap.
        ignore_label: label of samples or voxels to leave out of the divergence.

    Raises:
        UsageError: an option is out of range.

    Example:
        >>> import torch
        >>> net = nn.Linear(2, 3)
        >>> objective = MESA(nn.CrossEntropyLoss(), net, decay=0.9)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> _ = optimizer.register_step_post_hook(lambda *_: objective.after_step(net))
        >>> loss = objective(net, {"image": torch.eye(2), "label": torch.tensor([0, 2])})
        >>> loss.backward()
        >>> optimizer.step()
        >>> objective.teacher.n_averaged
        tensor(1)

    References:
        Du et al., *Sharpness-Aware Training for Free*, NeurIPS 2022, arXiv:2205.14083.
        Differs from the paper: voxels, a start in steps instead of epochs (5 in its code), logarithms of softmax in
        float32 also under autocast, and the first update copies the weights, where the code averages with the
        initial ones.
    """

    may_fail = rank_zero_only = False

    @check_options
    def __init__(
        self,
        loss: nn.Module | Callable[..., Tensor],
        net: nn.Module,
        *,
        weight: NonNegative = 0.8,
        temperature: Positive = 5.0,
        decay: BelowOne = 0.9998,
        start_step: NonNegativeInt = 0,
        form: Form = "softmax",
        ignore_label: int | None = None,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.form: Form = form
        self.ignore_label = ignore_label
        self.weight, self.temperature, self.start_step = weight, temperature, start_step
        average = AveragedModel(bare_network(net), multi_avg_fn=partial(_average, decay), use_buffers=True)
        self.teacher = average.requires_grad_(False)
        self._passes = 0  # calls since the teacher's last change

    def forward(self, net: nn.Module, batch: Batch | Sequence[Any]) -> Tensor:
        """Compute the loss of one batch.

        Args:
            net: the network.
            batch: a mapping with ``image`` and ``label``, or a pair ``(input, label)``.
        """
        image, label = read_pair(batch, fix="write objective(net, (input, label))")
        logits = net(image)
        loss: Tensor = self.loss(logits, label)
        if self.weight == 0 or (self.start_step and self.teacher.n_averaged < self.start_step):
            return loss
        self._warn_of_no_step()
        self.teacher.eval()  # train() on the objective also sets the teacher's mode
        with no_grad():
            past = finest_logits(self.teacher(image))
        now = finest_logits(logits)
        valid = find_valid(label, now, self.ignore_label)
        if valid is not None:
            past, now = past.masked_fill(~valid, 0), now.masked_fill(~valid, 0)  # equal, so they add nothing
        divergence = softened_divergence(past, now, temperature=self.temperature, form=self.form)
        return loss + self.weight * average_valid(divergence, valid)

    def _warn_of_no_step(self) -> None:
        """Warn once of a teacher that many calls have not changed."""
        self._passes += 1
        if self._passes == PASSES_WITHOUT_STEP and self.training:
            warnings.warn(
                f"MESA's teacher has not changed in {PASSES_WITHOUT_STEP} calls. Write "
                "optimizer.register_step_post_hook(lambda *_: objective.after_step(net)).",
                stacklevel=5,
            )

    def after_step(self, net: nn.Module) -> None:
        """Update the teacher; to be called once after each optimizer step."""
        self._passes = 0
        self.teacher.update_parameters(bare_network(net))

    def on_step(self, run: RunView) -> None:
        """Update the teacher."""
        self.after_step(run.net)

    def on_epoch_end(self, run: RunView, row: Row) -> None:
        """Add the learned weights of the loss terms."""
        row["loss_weights"] = self.loss_weights()

    def loss_weights(self) -> dict[str, float]:
        """Read the loss's learned weights; empty for a loss without them."""
        return read_loss_weights(self.loss)


def _average(decay: float, *lists: Any) -> None:
    """Update a moving average; unlike torch's function it can be pickled."""
    get_ema_multi_avg_fn(decay)(*lists)
