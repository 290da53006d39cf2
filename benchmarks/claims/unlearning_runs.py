"""Trainings, unlearning and attacks of the two settings, and their measures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn

from benchmarks.claims.run_log import Measured, Run
from benchmarks.claims.unlearning_sets import UNLEARNING_SETTINGS, ForgetTask, Samples
from uumamba.optim import SAM, Plain, SharpnessAware
from uumamba.runtime.seeds import generator_for
from uumamba.unlearning import (
    NPO,
    CurvatureRegularization,
    GradientDifference,
    GradientPenalty,
    MeanLoss,
    RandomizedSmoothing,
    RelearningResult,
    Smoothing,
    WeightAveraging,
    attack_by_loss,
    attack_by_score,
    collect_losses,
    likelihood_ratio_scores,
    logit_confidence,
    mean_accuracy,
    prediction_distance,
    relearning_attack,
    unlearn,
    weight_distance,
)

BEFORE, RETRAINED = "before unlearning", "retrained"
REFERENCES = (BEFORE, RETRAINED)
BUDGETS = (5, 15, 50)
"""Steps of the attack."""
TRIALS, SHADOWS = 16, 16
RETAIN_WEIGHTS = (0.5, 4.0)
"""Smallest and largest weight of the retain loss."""
EVERY = 2
"""Steps between averaged weights."""

EVALUATED = 256
"""Batch size of measures."""

ALL_FORGET = "accuracy on all samples to forget"
FORGET, FORGET_LOSS = "forget accuracy", "forget loss"
RETAINED, UNSEEN = "retained accuracy", "unseen accuracy"
MEMBERSHIP, LIRA, CHANCE = "membership area", "LiRA area", "distance of the membership area from chance"
DIVERGENCE, WEIGHTS = "divergence from the retrained network", "distance of weights to the retrained network"
RISE = "rise of the forget accuracy"
TRIAL, TEST, SWEEP = "trial", "test", "sweep"
ROWS = "rows"
PAST = "retained accuracy before unlearning"


@dataclass(frozen=True)
class Arm:
    """Unlearning method.

    Attributes:
        is_npo: NPO or gradient difference as forget loss.
        number: name of the method's own number; empty if there is none.
        bounds: smallest and largest value of the number, between which trials are drawn on a logarithmic scale.
        rho: whether the number is the radius of SAM.
        smoothing: function from the number to a smoothed form of the forget loss.
        averages: whether the number is the share of steps before weights are averaged.
    """

    is_npo: bool = True
    number: str = ""
    bounds: tuple[float, float] = (1.0, 1.0)
    rho: bool = False
    smoothing: Callable[[float], Smoothing] | None = None
    averages: bool = False


ARMS: Mapping[str, Arm] = {
    "NPO": Arm(),
    "NPO+SAM": Arm(number="rho", bounds=(0.003, 0.1), rho=True),
    "NPO+RS": Arm(number="sigma", bounds=(0.001, 0.1), smoothing=lambda value: RandomizedSmoothing(sigma=value)),
    "NPO+GP": Arm(number="c", bounds=(0.003, 0.3), smoothing=lambda value: GradientPenalty(weight=value)),
    "NPO+CR": Arm(number="c", bounds=(0.01, 3.0), smoothing=lambda value: CurvatureRegularization(weight=value)),
    "NPO+WA": Arm(number="start", bounds=(0.2, 0.9), averages=True),
    "GradDiff": Arm(is_npo=False),
    "GradDiff+SAM": Arm(is_npo=False, number="rho", bounds=(0.003, 0.1), rho=True),
}


@dataclass(frozen=True)
class Numbers:
    """Numbers of one trial."""

    lr: float
    beta: float
    retain_weight: float
    own: float


@cache
def draw_trials() -> tuple[tuple[float, ...], ...]:
    """Return evenly spread points in the unit cube, for every arm."""
    engine = torch.quasirandom.SobolEngine(4, scramble=True, seed=0)
    return tuple(map(tuple, engine.draw(TRIALS).tolist()))


def find_numbers(setting: str, method: str, trial: int) -> Numbers:
    """Return the numbers of a method's trial."""
    spec = UNLEARNING_SETTINGS[setting]
    bounds = (spec.lrs, spec.betas, RETAIN_WEIGHTS, ARMS[method].bounds)
    return Numbers(
        *(low * (high / low) ** part for (low, high), part in zip(bounds, draw_trials()[trial], strict=True))
    )


def after(metric: str, budget: int) -> str:
    """Name a measure after some steps of the attack.

    Example:
        >>> after(FORGET, 5)
        'forget accuracy, 5 steps'
    """
    return f"{metric}, {budget} steps"


def name_rates(kind: str, rates: Sequence[float]) -> str:
    """Name the measures of a run attacked at some learning rates.

    Example:
        >>> name_rates(SWEEP, (0.001, 0.01))
        'sweep 0.001 0.01'
    """
    return " ".join([kind, *(f"{rate:g}" for rate in rates)])


def perform(run: Run) -> Measured:
    """Unlearn and measure one run, independent of process and time."""
    kind, *rates = run.measures.split()
    net = make_network(run)
    if kind == TRIAL:
        return _measure_trial(run, net)
    result, others = attack(run, net, [float(rate) for rate in rates])
    if kind == SWEEP:
        return {ROWS: [[row.steps, row.rate, row.quality] for row in result.rows]}
    return measure_attack(result, others) | _measure_quality(run, net) | _measure_membership(run, net)


def make_network(run: Run) -> nn.Module:
    """Return the network of a run: unlearned, or one of the references."""
    if run.method in REFERENCES:
        return deepcopy(train_network(run.setting, run.seed, run.steps, run.method == RETRAINED))
    spec, arm, task = UNLEARNING_SETTINGS[run.setting], ARMS[run.method], draw_task(run)
    numbers = find_numbers(run.setting, run.method, int(run.value or 0))
    net = deepcopy(train_network(run.setting, run.seed, run.steps, False))
    start = max(1, round(numbers.own * run.steps))
    unlearn(
        net,
        task.forget.split(spec.batch),
        task.retain.split(spec.batch),
        forget_loss=NPO(net, beta=numbers.beta) if arm.is_npo else GradientDifference(),
        optimizer=partial(_make_optimizer, lr=run.lr, rho=numbers.own if arm.rho else None),
        steps=run.steps,
        retain_weight=numbers.retain_weight,
        smoothing=arm.smoothing(numbers.own) if arm.smoothing else None,
        averaging=WeightAveraging(start=start, every=EVERY) if arm.averages else None,
        seed=run.seed,
    )
    return net


@cache
def train_network(setting: str, seed: int, steps: int, is_retrained: bool) -> nn.Module:
    """Train on all or on retained samples; cached per process, deterministic.

    Args:
        setting: the data and the network.
        seed: of the samples, the start and the order.
        steps: steps of unlearning; training makes a multiple of them.
        is_retrained: whether the samples to forget are left out.
    """
    task = UNLEARNING_SETTINGS[setting].draw(seed)
    samples = task.retain if is_retrained else task.forget.join(task.retain)
    return train(setting, samples, seed, steps, "retrained" if is_retrained else "trained")


def train(setting: str, samples: Samples, seed: int, steps: int, *key: int | str) -> nn.Module:
    """Train by Adam at a constant rate; return it in evaluation mode."""
    spec, loss = UNLEARNING_SETTINGS[setting], MeanLoss()
    net = spec.build(seed).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=spec.lr)
    for step in range(spec.training * steps):
        optimizer.zero_grad()
        loss(net, samples.draw_batch(spec.batch, seed, *key, step)).backward()
        optimizer.step()
    return net.eval()


def attack(run: Run, net: nn.Module, rates: Sequence[float]) -> tuple[RelearningResult, list[Measured]]:
    """Fine-tune copies on the known samples; score them on the hidden ones.

    Returns:
        The result, and for each of its rows the other measures at that row.
    """
    task, others = draw_task(run), list[Measured]()

    def score(attacked: nn.Module) -> float:
        loss = float(collect_losses(attacked, task.hidden.split(EVALUATED)).mean())
        others.append({FORGET_LOSS: loss, UNSEEN: measure_accuracy(attacked, task.unseen)})
        return measure_accuracy(attacked, task.hidden)

    known = task.known.split(len(task.known))
    adam = partial(torch.optim.Adam, lr=rates[0])
    result = relearning_attack(net, known, score, optimizer=adam, budgets=BUDGETS, rates=rates, seed=run.seed)
    finite = iter(others)
    filler = {FORGET_LOSS: float("nan"), UNSEEN: float("nan")}
    return result, [next(finite) if row.quality == row.quality else filler for row in result.rows]


def measure_attack(result: RelearningResult, others: Sequence[Measured]) -> Measured:
    """Return the measures before the attack and at its strongest rows."""
    before = result.rows[0].quality
    measured: Measured = {FORGET: before} | others[0]
    for budget in BUDGETS:
        row = result.strongest(budget)
        there = others[result.rows.index(row)]
        measured |= {after(FORGET, budget): row.quality, after(RISE, budget): row.quality - before}
        measured |= {after(name, budget): value for name, value in there.items()}
    return measured


def draw_task(run: Run) -> ForgetTask:
    """Return the samples of a run."""
    return UNLEARNING_SETTINGS[run.setting].draw(run.seed)


def measure_accuracy(net: nn.Module, samples: Samples) -> float:
    """Return the accuracy, of text that of the next character."""
    return mean_accuracy(net, samples.split(EVALUATED))


def _make_optimizer(params: list[nn.Parameter], *, lr: float, rho: float | None) -> SharpnessAware:
    base = partial(torch.optim.Adam, lr=lr)
    return Plain(params, base) if rho is None else SAM(params, base, rho=rho)


def _measure_trial(run: Run, net: nn.Module) -> Measured:
    task, past = draw_task(run), train_network(run.setting, run.seed, run.steps, False)
    return {
        ALL_FORGET: measure_accuracy(net, task.forget),
        RETAINED: measure_accuracy(net, task.retain),
        PAST: measure_accuracy(past, task.retain),
        UNSEEN: measure_accuracy(net, task.unseen),
    }


def _measure_quality(run: Run, net: nn.Module) -> Measured:
    task, retrained = draw_task(run), train_network(run.setting, run.seed, run.steps, True)
    return {
        RETAINED: measure_accuracy(net, task.retain),
        DIVERGENCE: prediction_distance(net, retrained, task.forget.split(EVALUATED)).divergence,
        WEIGHTS: weight_distance(net, retrained),
    }


def _measure_membership(run: Run, net: nn.Module) -> Measured:
    task = draw_task(run)
    losses = [collect_losses(net, samples.split(EVALUATED)) for samples in (task.forget, task.unseen)]
    area = attack_by_loss(*losses, draws=1).auc
    lira = None if task.others is None else attack_by_shadows(run, net, task.forget, task.others)
    return {MEMBERSHIP: area, CHANCE: abs(area - 0.5), LIRA: lira}


def attack_by_shadows(run: Run, net: nn.Module, members: Samples, others: Samples) -> float:
    """Return the area of the likelihood-ratio attack on members and others."""
    shadow, is_member = train_shadows(run.setting, run.seed, run.steps)
    chosen = torch.cat([torch.arange(len(members)), torch.arange(shadow.shape[1] - len(others), shadow.shape[1])])
    confidence = collect_losses(net, members.join(others).split(EVALUATED), per_sample_loss=logit_confidence)
    scores = likelihood_ratio_scores(confidence, shadow[:, chosen], is_member[:, chosen], variance="shared")
    return attack_by_score(scores[: len(members)], scores[len(members) :], draws=1).auc


@cache
def train_shadows(setting: str, seed: int, steps: int) -> tuple[Tensor, Tensor]:
    """Train shadow models on random halves; cached per process.

    Halves come in complementary pairs, so each sample is in half of the training sets.

    Returns:
        Confidences and membership ``(models, samples)`` of the samples to forget, to retain and the others.
    """
    task = UNLEARNING_SETTINGS[setting].draw(seed)
    assert task.others is not None
    samples = task.forget.join(task.retain).join(task.others)
    confidences, members = list[Tensor](), list[Tensor]()
    for index, is_member in enumerate(draw_halves(len(samples), seed)):
        net = train(setting, samples[is_member], seed, steps, "shadow", index)
        confidences.append(collect_losses(net, samples.split(EVALUATED), per_sample_loss=logit_confidence))
        members.append(is_member)
    return torch.stack(confidences), torch.stack(members)


def draw_halves(samples: int, seed: int) -> Iterator[Tensor]:
    """Yield masks of random halves, each followed by its complement."""
    for pair in range(SHADOWS // 2):
        order = torch.randperm(samples, generator=generator_for(seed, "unlearning, shadows", pair))
        is_member = torch.zeros(samples, dtype=torch.bool)
        is_member[order[: samples // 2]] = True
        yield from (is_member, ~is_member)
