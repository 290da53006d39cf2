"""Unlearning of a forget set in a few steps."""

import warnings
from collections.abc import Callable
from itertools import islice

from torch import nn

from uumamba.runtime.errors import require
from uumamba.runtime.options import Batches, NonNegative, PositiveInt, check_options
from uumamba.runtime.whole_step import WholeStepOptimizer, check_whole_step
from uumamba.unlearning.cycled_batches import cycle_batches
from uumamba.unlearning.forget_losses import ForgetLoss
from uumamba.unlearning.per_sample_loss import MeanLoss, Predict, predict_batch
from uumamba.unlearning.renewed_statistics import find_trained_norms, renew_statistics
from uumamba.unlearning.smoothing import Smoothing
from uumamba.unlearning.unlearning_step import Loss, StepRecord, UnlearningStep
from uumamba.unlearning.weight_averaging import WeightAveraging


@check_options
def unlearn(
    net: nn.Module,
    forget: Batches,
    retain: Batches,
    *,
    forget_loss: ForgetLoss | Loss,
    optimizer: Callable[[list[nn.Parameter]], WholeStepOptimizer],
    steps: PositiveInt,
    retain_loss: Loss | None = None,
    retain_weight: NonNegative = 1.0,
    smoothing: Smoothing | None = None,
    averaging: WeightAveraging | None = None,
    accumulation: PositiveInt = 1,
    seed: int = 0,
    predict: Predict = predict_batch,
    on_step: Callable[[StepRecord], object] | None = None,
) -> list[StepRecord]:
    r"""Make a network forget one set and retain another, in place.

    Each step is an :class:`UnlearningStep` with the next batches of both sets, which are repeated as needed.

    **Modes.** The network's modes are the caller's: call ``net.eval()`` first to unlearn without dropout and with fixed
    batch norms, ``net.train()`` otherwise. Running statistics do not change during the steps; those of batch norms in
    training mode are computed at the end from the next retain batches, as many as the run used, so that nothing of the
    forget set is left in them. Fixed batch norms do not rescale activations, so a learning rate for training mode may
    be too high with them: ``retain_loss`` of the records then grows, or steps are skipped. A tenth of it is a start.

    **Errors.** A step with a gradient that is not finite is skipped and recorded; the run warns of skipped steps. An
    error leaves the network as after its last complete step.

    Args:
        net: the network; its trainable parameters change.
        forget: batches of samples to forget: a list, passed in a keyed random order, or an iterable such as a
            ``DataLoader``.
        retain: batches of samples to retain; may be empty for a ``retain_weight`` of 0.
        forget_loss: such as :class:`NPO` of a copy of the network, or :class:`GradientDifference`.
        optimizer: callable from parameters to an optimizer of :mod:`uumamba.optim`.
        steps: number of optimizer steps.
        retain_loss: objective of the retain batches; None for :class:`MeanLoss`, the mean cross entropy.
        retain_weight: :math:`\gamma`, the weight of the retain loss.
        smoothing: smoothed form of the forget loss, such as :class:`GradientPenalty`; for SAM, choose the optimizer.
        averaging: averages the weights of later steps and loads them at the end.
        accumulation: micro-batches of each set per step.
        seed: seed of the order of lists.
        predict: runs a batch through the network, for the default ``retain_loss`` and for running statistics.
        on_step: called with the record of each complete step, such as for a progress bar; what it raises ends the run.

    Returns:
        One record per step.

    Raises:
        UsageError: an option is out of range, a set is empty, no parameter is trainable, the optimizer takes no
            ``at_weights``, the averaging was used before or would start after the last step, or every step was skipped.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from uumamba.optim import SAM
        >>> from uumamba.unlearning import NPO
        >>> net = nn.Linear(2, 2)
        >>> forget, retain = [(torch.eye(2)[:1], torch.tensor([0]))], [(torch.eye(2)[1:], torch.tensor([1]))]
        >>> records = unlearn(
        ...     net,
        ...     forget,
        ...     retain,
        ...     forget_loss=NPO(net, beta=0.5),
        ...     optimizer=lambda params: SAM(params, partial(torch.optim.SGD, lr=0.1), rho=0.01),
        ...     steps=3,
        ... )
        >>> records[0].forget_loss > records[2].forget_loss
        True

    References:
        Fan et al., *Towards LLM Unlearning Resilient to Relearning Attacks*, ICML 2025, arXiv:2502.05374.
        Differs from the paper: none; for its code see :class:`UnlearningStep`.
    """
    params = [param for param in net.parameters() if param.requires_grad]
    require(params, "net", got="no trainable parameter", expected="at least one with requires_grad=True")
    _check_averaging(averaging, steps)
    made = optimizer(params)
    check_whole_step(made)
    step = UnlearningStep(
        forget_loss, retain_loss or MeanLoss(predict=predict), retain_weight=retain_weight, smoothing=smoothing
    )
    forgotten, retained = cycle_batches(forget, seed, "forget"), cycle_batches(retain, seed, "retain")
    records: list[StepRecord] = []
    for number in range(1, steps + 1):
        batches = list(islice(forgotten, accumulation)), list(islice(retained, accumulation if retain_weight else 0))
        records.append(step(net, made, *batches))
        if averaging is not None:
            averaging.after_step(net, number)
        if on_step is not None:
            on_step(records[-1])
    _report_skipped(records)
    if averaging is not None:
        averaging.load_into(net)
    if retain_weight and find_trained_norms(net):
        renew_statistics(net, islice(retained, steps * accumulation), predict=predict)
    return records


def _check_averaging(averaging: WeightAveraging | None, steps: int) -> None:
    require(
        averaging is None or averaging.start <= steps,
        "averaging",
        got=f"start {averaging.start if averaging else 0}",
        expected=f"a start of at most {steps}, the number of steps",
    )
    require(
        averaging is None or averaging.count == 0,
        "averaging",
        got="weights of an earlier run",
        expected="a new WeightAveraging",
    )


def _report_skipped(records: list[StepRecord]) -> None:
    skipped = [record.step for record in records if record.is_skipped]
    require(
        len(skipped) < len(records),
        "steps",
        got=f"no finite gradient in any of {len(records)} steps, so unchanged weights",
        expected="finite losses and gradients",
        fix="check inputs and weights for NaN, or lower the learning rate",
    )
    if skipped:
        warnings.warn(
            f"{len(skipped)} of {len(records)} unlearning steps were skipped, since a gradient was not finite; "
            f"the first is step {skipped[0]}.",
            stacklevel=4,
        )
