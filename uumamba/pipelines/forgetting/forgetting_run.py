"""Unlearning steps on patches of patients, towards the loss of unseen ones."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from statistics import fmean
from typing import Any, Literal

import torch
from torch import nn

from uumamba.config.objectives import build_objective
from uumamba.data.loader import batches
from uumamba.optim import SAM, Plain
from uumamba.pipelines.build import build_augmentation, build_dataset, build_loss
from uumamba.pipelines.forgetting.case_measures import CaseMeasures
from uumamba.pipelines.forgetting.forget_request import ForgetRequest
from uumamba.pipelines.forgetting.recognised_cases import LOSSES, find_recognised
from uumamba.pipelines.forgetting.relative_loss import measure_unseen
from uumamba.pipelines.jobs import replace_seed
from uumamba.runtime.network import batch_to_device
from uumamba.runtime.options import NonNegative, Positive, PositiveInt, check_options
from uumamba.runtime.seeds import key_to_seed, seed_everything
from uumamba.training.schedule import poly
from uumamba.types import Batch
from uumamba.unlearning import (
    NPO,
    CurvatureRegularization,
    GradientDifference,
    GradientPenalty,
    RandomizedSmoothing,
    Smoothing,
    UnlearningStep,
)
from uumamba.unlearning.per_sample_loss import PerSampleLoss

SHARE_OF_STEPS = 0.2
"""Default number of unlearning steps, relative to the steps of the training."""
REFERENCE_BATCHES = 16
"""Batches of unseen patches whose median losses are the reference."""
SmoothingName = Literal["SAM", "RS", "GP", "CR", "none"]


@check_options
@dataclass(frozen=True, kw_only=True)
class ForgettingOptions:
    """Options of unlearning patients.

    Attributes:
        method: forget loss: negative preference optimisation, or plain ascent.
        smoothing: smoothing of the forget loss against relearning: by SAM, randomised smoothing (RS), gradient penalty
            (GP) or curvature regularisation (CR).
        strength: radius of SAM, standard deviation of RS, or weight of the penalty of GP or CR.
        beta: NPO's slope on the relative loss of a patch.
        retain_weight: weight of the retain loss, which is the run's own.
        learning_rate: of the run's base optimizer, which decays to 0 over the steps; None for the run's.
        steps: number of steps; None for a fifth of those of the run's training.
        looks: looks at whole cases during the steps; between two of them the same cases are pushed.
    """

    method: Literal["NPO", "GradientDifference"] = "NPO"
    smoothing: SmoothingName = "SAM"
    strength: Positive = 0.01
    beta: Positive = 10.0
    retain_weight: NonNegative = 10.0
    learning_rate: Positive | None = None
    steps: PositiveInt | None = None
    looks: PositiveInt = 20


@dataclass(frozen=True)
class Look:
    """Look at whole cases between steps.

    Attributes:
        step: number of steps before it.
        forget_loss: mean loss of the cases to forget.
        unseen_loss: mean loss of unseen cases.
        recognised: the cases to forget that are pushed until the next look, by the loss that recognises most.
        by: name of that loss, ``loss`` or ``voxel_loss``.
    """

    step: int
    forget_loss: float
    unseen_loss: float
    recognised: tuple[str, ...]
    by: str


def forget_patients(
    request: ForgetRequest,
    options: ForgettingOptions,
    measures: CaseMeasures,
    *,
    unseen_ids: Sequence[str],
    device: str = "cpu",
    on_look: Callable[[Look], object] = lambda look: None,
) -> tuple[nn.Module, list[Look]]:
    r"""Unlearn the patients of a request.

    Each step descends on the forget loss of unchanged patches of the patients to forget, and on the run's own loss of
    augmented patches of the others. The loss weights that the run learned are fixed. Each look lists the cases that are
    still recognised (:func:`find_recognised`), by class means and by voxels. Until the next one, patches of the longer
    list are drawn and that loss is raised, with the share of these cases among all to forget as its weight; without a
    case on the list a step is one of the run's own loss alone. NPO's reference is 1, the relative loss :math:`r`
    (:class:`RelativeLosses`) of a typical unseen patch,

    .. math:: l_f = -\frac{2}{\beta B} \sum_i \log \sigma\big(\beta\, (r_i - 1)\big)

    so that a patch is pushed while it is recognised. Pushed further, patients could be recognised by a loss that is too
    high, and unseen ones would lose Dice. The rate begins as in the training and decays to 0: a lower one forgets less,
    and the decay returns the Dice that a high one costs.

    Args:
        request: the trained model and the cases.
        options: method and its numbers.
        measures: losses of whole cases.
        unseen_ids: unseen cases of the reference; others are needed for the evidence.
        device: of the network.
        on_look: called with each look.

    Returns:
        The network in evaluation mode, and the looks.
    """
    seed_everything(request.job.config.seed)
    net = request.load_net().to(device)
    training = request.job.config.training
    steps = options.steps or math.ceil(training.epochs * training.batches_per_epoch * SHARE_OF_STEPS)
    unseen = islice(_stream_patches(request, unseen_ids, "unseen", augmented=False, device=device), REFERENCE_BATCHES)
    steps_by_loss = _build_steps(request, options, net, unseen, device)
    optimizer = _build_optimizer(request, options, net)
    schedule = poly(optimizer, total_steps=steps)
    retain = _stream_patches(request, request.retain_ids, "retain", augmented=True, device=device)
    looks: list[Look] = []
    for number in range(steps + 1):
        if number % math.ceil(steps / options.looks) == 0 or number == steps:
            looks.append(_look(measures, net.eval(), number, request.forget_ids, unseen_ids))
            on_look(looks[-1])
            pushed, step = looks[-1].recognised, steps_by_loss[looks[-1].by]
            forget = _stream_patches(request, pushed, f"forget {number}", augmented=False, device=device)
        if number < steps:
            if pushed:
                step.retain_weight = options.retain_weight * len(request.forget_ids) / len(pushed)
                step(net.train(), optimizer, [next(forget)], [next(retain)])
            else:
                optimizer.step(partial(step.retain_loss, net.train(), next(retain)))
            schedule.step()
    return net.eval(), looks


def describe(options: ForgettingOptions, looks: Sequence[Look]) -> dict[str, Any]:
    """Return options and looks as JSON values."""
    return {"options": asdict(options), "looks": [asdict(look) for look in looks]}


def _build_steps(
    request: ForgetRequest, options: ForgettingOptions, net: nn.Module, unseen: Iterable[Batch], device: str
) -> dict[str, UnlearningStep]:
    """Build a step for each loss by which cases are recognised."""
    config, labels = request.job.config, request.folder.manifest.labels
    objective = build_objective(config.objective, build_loss(config, labels), net, outputs=False, labels=labels)
    objective.load_state_dict(request.checkpoint.objective)
    objective.to(device).requires_grad_(False)
    relative = measure_unseen(net, unseen, ignore_label=labels.ignore_label)
    return {
        name: UnlearningStep(
            _build_forget_loss(options, getattr(relative, name)),
            objective,
            retain_weight=options.retain_weight,
            smoothing=_build_smoothing(options),
        )
        for name in LOSSES
    }


def _build_forget_loss(options: ForgettingOptions, relative: PerSampleLoss) -> NPO | GradientDifference:
    if options.method == "NPO":
        return NPO(lambda batch: torch.ones(len(batch["image"])), beta=options.beta, per_sample_loss=relative)
    return GradientDifference(per_sample_loss=relative)


def _build_smoothing(options: ForgettingOptions) -> Smoothing | None:
    # Kernels such as the selective scan have no second derivative.
    if options.smoothing == "RS":
        return RandomizedSmoothing(sigma=options.strength)
    if options.smoothing == "GP":
        return GradientPenalty(weight=options.strength, second_order="finite_difference")
    if options.smoothing == "CR":
        return CurvatureRegularization(weight=options.strength, second_order="finite_difference")
    return None


def _build_optimizer(request: ForgetRequest, options: ForgettingOptions, net: nn.Module) -> Plain | SAM:
    given = request.job.config.optim
    rate = {} if options.learning_rate is None else {"lr": options.learning_rate}
    base, norm = partial(given.base.bind(), **rate), given.options.get("max_grad_norm")
    if options.smoothing == "SAM":
        return SAM(net.parameters(), base, rho=options.strength, net=net, max_grad_norm=norm)
    return Plain(net.parameters(), base, net=net, max_grad_norm=norm)


def _stream_patches(
    request: ForgetRequest, case_ids: Sequence[str], name: str, *, augmented: bool, device: str
) -> Iterator[Batch]:
    """Yield batches of patches without end, keyed by name and epoch."""
    config = replace_seed(request.job.config, key_to_seed(request.job.config.seed, "unlearning", name))
    dataset = build_dataset(config, request.folder, case_ids)
    augment = build_augmentation(request.job, request.folder) if augmented else None
    epoch = 0
    while True:
        for batch in batches(dataset, epoch):
            loaded = batch_to_device(batch, device)
            yield loaded if augment is None else augment(loaded)
        epoch += 1


def _look(measures: CaseMeasures, net: nn.Module, step: int, forget: Sequence[str], unseen: Sequence[str]) -> Look:
    found = measures.measure(net, [*forget, *unseen])
    forget_loss, unseen_loss = (fmean(found[case_id].loss for case_id in ids) for ids in (forget, unseen))
    recognised = find_recognised({case_id: found[case_id] for case_id in forget}, [found[each] for each in unseen])
    by = max(recognised, key=lambda name: len(recognised[name]))
    return Look(step, forget_loss, unseen_loss, tuple(recognised[by]), by)
