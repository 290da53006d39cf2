"""Claims of USEFUL: it finds slowly learned examples, and repeating them helps.

    python -m benchmarks.claims.domain_generalization --only useful --out runs/domain_generalization

The data are scikit-learn's digits in two versions: unchanged, and with a bar of ten pixels that shows the class in nine
tenths of training and test set, so that the slowly learned examples are known. Every method starts from the same
weights as its control, seed by seed. The control repeats as many examples of each class, drawn at random. All settings
were fixed on seeds from 1000 on; nothing is chosen here. Runs stored in OUT are read, not run again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.claims.claim_table import Claim, make_claim_row
from benchmarks.claims.class_bar import Examples, build_net, make_test_set, make_training_set
from benchmarks.claims.run_log import Measured, Run, RunLog
from uumamba.domain_generalization import (
    USEFUL,
    SlowExamples,
    UpsampledSampler,
    find_slow,
    probe_classification,
)
from uumamba.runtime.seeds import generator_for

BAR, PLAIN = "digits with a class bar", "digits"
SEEDS, EPOCHS, MOST_PROBE_EPOCHS = 30, 40, 12
LR, PROBE_LR, MOMENTUM, WEIGHT_DECAY, BATCH = 0.1, 0.02, 0.9, 5e-4, 64
FIRST_SEED = 100
"""Smaller seeds were used to develop the elbow rule."""
OTHER_SEED = 10_000
"""Offset from the probe's seed to that of the training in which learning is measured."""

RECALL, PRECISION = "recall of bar-less examples", "precision of bar-less examples"
ERROR, SLOW_ERROR = "test error", "test error without bar"
LEARNED, FORGOTTEN = "epoch of first right answer", "forgetting events an example"
NO_WORSE = 0.005
BOUNDS = {RECALL: 0.9, PRECISION: 0.8}
TRAINED = ("base", "random copy", "USEFUL")


def _list_claims() -> Iterator[tuple[Claim, str]]:
    """Yield each claim with its budget."""
    for metric, bound in BOUNDS.items():
        yield Claim("USEFUL", "bound", metric, "higher", setting=BAR, wording=f"higher than {bound:g}"), "a probe"
    yield Claim("USEFUL, logits", "USEFUL", PRECISION, "higher", margin=0.05, setting=BAR), "a probe"
    yield Claim("USEFUL", "random copy", SLOW_ERROR, "lower", setting=BAR), "equal steps"
    yield Claim("USEFUL", "random copy", SLOW_ERROR, "lower", margin=NO_WORSE, setting=BAR), "equal steps"
    yield Claim("USEFUL", "base", SLOW_ERROR, "lower", setting=BAR), "equal epochs"
    for setting in (BAR, PLAIN):
        yield Claim("USEFUL", "random copy", ERROR, "lower", setting=setting), "equal steps"
        yield Claim("USEFUL", "base", ERROR, "lower", setting=setting), "equal epochs"
    for metric in (LEARNED, FORGOTTEN):
        yield Claim("slow examples", "fast examples", metric, "higher", setting=PLAIN), "a training of another seed"


CLAIMS = tuple(_list_claims())


def make_table(out: Path, *, quick: bool, workers: int) -> tuple[list[dict[str, Any]], str, set[str]]:
    """Return the rows of USEFUL's claims, a description, and the commits.

    Args:
        out: folder of the run log.
        quick: use three seeds instead of thirty.
        workers: number of processes.
    """
    log = RunLog(out)
    seeds = range(FIRST_SEED, FIRST_SEED + (3 if quick else SEEDS))
    methods = {BAR: ("probe", *TRAINED), PLAIN: ("learning", *TRAINED)}
    names = [(setting, method) for setting, each in methods.items() for method in each]
    log.complete([_make_run(*name, seed) for seed in seeds for name in names], perform, workers=workers)
    measured = {name: [log.measured[_make_run(*name, seed)] for seed in seeds] for name in names}
    return [_make_row(claim, budget, measured) for claim, budget in CLAIMS], _describe_table(measured), log.commits


def _make_run(setting: str, method: str, seed: int) -> Run:
    return Run(setting, method, None, LR, EPOCHS, seed, "test")


def _make_row(claim: Claim, budget: str, measured: Mapping[tuple[str, str], Sequence[Measured]]) -> dict[str, Any]:
    sides = [_collect_values(measured, claim, side) for side in (claim.method, claim.control)]
    return make_claim_row(claim, *sides, budget=budget)


def _collect_values(measured: Mapping[tuple[str, str], Sequence[Measured]], claim: Claim, side: str) -> list[float]:
    """Return the numbers of one side of a claim, one per seed."""
    if claim.metric in BOUNDS:
        found = [each.get(f"{claim.metric}, {side}") for each in measured[claim.setting, "probe"]]
        return [BOUNDS[claim.metric] if value is None else value for value in found]
    if claim.metric in (LEARNED, FORGOTTEN):
        return [each[f"{claim.metric}, {side}"] for each in measured[claim.setting, "learning"]]
    return [each[claim.metric] for each in measured[claim.setting, side]]


def perform(run: Run) -> Measured:
    """Train and measure one run, independent of process and time."""
    data = make_training_set(run.seed, bar=run.setting == BAR)
    if run.method == "probe":
        return _measure_identification(run, data)
    if run.method == "learning":
        return _measure_learning(run, data)
    slow = () if run.method == "base" else _make_probe(run, data).find().slow
    if run.method == "random copy":
        slow = draw_random_copy(data.labels, slow, run.seed)
    return _measure_errors(_train(run, data, slow), make_test_set(run.seed, bar=run.setting == BAR))


def draw_random_copy(labels: Tensor, slow: Sequence[int], seed: int) -> tuple[int, ...]:
    """Draw as many examples of each class as are slow in it."""
    counts = labels[list(slow)].bincount(minlength=int(labels.max()) + 1).tolist()
    drawn: list[int] = []
    for value, count in enumerate(counts):
        members = (labels == value).nonzero()[:, 0]
        order = torch.randperm(len(members), generator=generator_for(seed, "random copy", value))
        drawn.extend(members[order[:count]].tolist())
    return tuple(sorted(drawn))


def find_learning_epochs(right: Tensor) -> tuple[Tensor, Tensor]:
    """Return each example's first correct epoch and its forgetting events.

    An example that is never correct gets one epoch after the last. A forgetting event is a correct answer followed by a
    wrong answer.

    Args:
        right: whether each answer is correct, ``(epochs, examples)``.

    Example:
        >>> find_learning_epochs(torch.tensor([[False, True, False], [True, False, False], [True, True, False]]))
        (tensor([2, 1, 4]), tensor([0, 1, 0]))
    """
    never = torch.ones_like(right[:1])
    first = torch.cat([right, never]).int().argmax(0) + 1
    return first, (right[:-1] & ~right[1:]).sum(0)


def _make_start(
    run: Run, data: Examples, lr: float
) -> Callable[[], tuple[nn.Module, Callable[[UpsampledSampler], None]]]:
    """Return a function that starts a training with SGD.

    The learning rate falls to a tenth after half and after three quarters of the epochs.
    """

    def start() -> tuple[nn.Module, Callable[[UpsampledSampler], None]]:
        net = build_net(data.images.shape[1])
        optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        milestones = [run.steps // 2, run.steps * 3 // 4]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)

        def train_epoch(sampler: UpsampledSampler) -> None:
            for ids in torch.tensor(list(sampler)).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(net(data.images[ids]), data.labels[ids]).backward()
                optimizer.step()
            schedule.step()

        return net, train_epoch

    return start


def _make_probe(run: Run, data: Examples, lr: float = PROBE_LR) -> USEFUL:
    probe = partial(probe_classification, batches=[(data.images, data.labels)])
    return USEFUL(_make_start(run, data, lr), probe, seed=run.seed, most_epochs=MOST_PROBE_EPOCHS)


def _train(
    run: Run, data: Examples, slow: Sequence[int], after_epoch: Callable[[nn.Module], None] | None = None
) -> nn.Module:
    """Train a network from the seed's weights, with some examples repeated."""
    net, train_epoch = _make_probe(run, data, lr=run.lr).restart()
    sampler = UpsampledSampler(len(data.labels), slow, seed=run.seed)
    for epoch in range(run.steps):
        sampler.set_epoch(epoch)
        train_epoch(sampler)
        if after_epoch is not None:
            after_epoch(net)
    return net


def _measure_identification(run: Run, data: Examples) -> Measured:
    """Measure recall and precision of the slow clusters.

    The reference are the examples without a bar. Clusters are formed from probabilities and, at the same epoch, from
    logits.
    """
    useful = _make_probe(run, data)
    found = useful.find()
    measured: Measured = {"epoch": found.epoch, "slow share": len(found.slow) / found.size}
    for name, each in (("USEFUL", found), ("USEFUL, logits", _cluster_logits(useful, found, data))):
        right = sum(bool(data.bar_less[place]) for place in each.slow)
        measured[f"{RECALL}, {name}"] = right / int(data.bar_less.sum())
        measured[f"{PRECISION}, {name}"] = right / max(len(each.slow), 1)
    return measured


def _cluster_logits(useful: USEFUL, found: SlowExamples, data: Examples) -> SlowExamples:
    net, train_epoch = useful.restart()
    sampler = useful.sampler(replace(found, slow=()))
    for epoch in range(found.epoch or 0):
        sampler.set_epoch(epoch)
        train_epoch(sampler)
    return find_slow(probe_classification(net, [(data.images, data.labels)], space="logits"), seed=found.seed)


def _measure_learning(run: Run, data: Examples) -> Measured:
    """Measure when slow and fast examples are learned and forgotten.

    The training has another seed than the probe.
    """
    slow = torch.zeros(len(data.labels), dtype=torch.bool)
    found = _make_probe(run, data).find()
    slow[list(found.slow)] = True
    right: list[Tensor] = []

    def record_answers(net: nn.Module) -> None:
        with torch.no_grad():
            right.append(net(data.images).argmax(1) == data.labels)

    _train(replace(run, seed=run.seed + OTHER_SEED), data, (), record_answers)
    first, forgotten = find_learning_epochs(torch.stack(right))
    measured: Measured = {"slow share": float(slow.double().mean()), "epoch": found.epoch}
    for name, which in (("slow examples", slow), ("fast examples", ~slow)):
        measured[f"{LEARNED}, {name}"] = float(first[which].double().mean())
        measured[f"{FORGOTTEN}, {name}"] = float(forgotten[which].double().mean())
    return measured


@torch.no_grad()
def _measure_errors(net: nn.Module, data: Examples) -> Measured:
    wrong = (net(data.images).argmax(1) != data.labels).double()
    return {ERROR: float(wrong.mean()), SLOW_ERROR: float(wrong[data.bar_less].mean())}


def _describe_table(measured: Mapping[tuple[str, str], Sequence[Measured]]) -> str:
    with_bar, without = (_describe_probes(measured[name]) for name in ((BAR, "probe"), (PLAIN, "learning")))
    return (
        "Differences are paired by seed (that of the bars, initialisation and order), intervals are Student's at 95 %, "
        "and the verdict follows from the interval; bounds are fixed numbers. Scikit-learn's digits, 997 to "
        "train on and 800 to test on; the bar of ten pixels with amplitude 3 marks the class of nine tenths of both. A "
        f"perceptron 128-128, SGD at {LR:g} (a tenth of it after half and three quarters), momentum {MOMENTUM:g}, "
        f"{EPOCHS} epochs; the probe at {PROBE_LR:g} ended after {with_bar} with the bar and {without} without. The "
        "random copy has as many examples of each class. Slow and fast examples of plain digits are measured in a "
        "training with another seed of initialisation and order than the probe's."
    )


def _describe_probes(found: Sequence[Measured]) -> str:
    epochs = [each["epoch"] for each in found]
    share = sum(each["slow share"] for each in found) / len(found)
    return f"{min(epochs)} to {max(epochs)} epochs and named {share:.0%} of the examples slow"
