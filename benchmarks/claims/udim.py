"""Claims of UDIM on digits, with unseen corruptions and attacks.

    python -m benchmarks.claims.domain_generalization --only udim --out runs/domain_generalization

Training uses one domain. Radius and weights are fixed here and not chosen by these runs: they come from a sweep over
other splits of the digits. The controls are SAM, and UDIM with random directions of the same length, which separates
its effect from augmentation. All have the same split, initialisation and order of batches, seed by seed. Runs stored in
OUT are read, not run again.
"""

import math
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.claims import unseen_digits
from benchmarks.claims.claim_table import Claim, make_claim_row
from benchmarks.claims.measures import accuracy
from benchmarks.claims.run_log import Measured, Run, RunLog
from uumamba.domain_generalization import UDIM, InputPerturbation
from uumamba.optim import SAM
from uumamba.runtime.seeds import generator_for, seed_everything

SAM_ALONE, OURS, CONTROL = "SAM", "UDIM", "UDIM, random directions"
METHODS = (SAM_ALONE, CONTROL, OURS)
RADIUS, WEIGHT, RHO = 0.3, 30.0, 0.05
EPOCHS, BATCH, LR = 20, 64, 1e-3
STEPS_AN_EPOCH = math.ceil(unseen_digits.TRAINING / BATCH)
WARMUP = 0.2
ATTACK_RADIUS, ATTACK_STEPS = 0.5, 10
SEEDS = 10
INCONSISTENCY, ATTACKED = "inconsistency", "accuracy under attack"
CORRUPTED, CLEAN = "corruption accuracy", "test accuracy"
CLAIMS: tuple[tuple[Claim, float], ...] = (
    (Claim(OURS, f"0.2 x {SAM_ALONE}", INCONSISTENCY, "lower"), 0.2),
    (Claim(OURS, f"0.5 x {CONTROL}", INCONSISTENCY, "lower"), 0.5),
    (Claim(OURS, SAM_ALONE, ATTACKED, "higher", margin=-0.1, wording="at least 10 points above SAM"), 1.0),
    (Claim(OURS, SAM_ALONE, CORRUPTED, "higher"), 1.0),
    (Claim(OURS, CONTROL, CORRUPTED, "higher"), 1.0),
    (Claim(OURS, SAM_ALONE, CLEAN, "higher", margin=0.015), 1.0),
)
"""Each claim, with the factor by which the control's number is multiplied."""
ABOUT = (
    "scikit-learn's digits, 60 % to train on and 40 % to test on, drawn by the seed; a perceptron of two hidden layers "
    f"of 128, {EPOCHS} epochs of Adam under SAM, the first {WARMUP:.0%} without UDIM; radius {RADIUS} and both weights "
    f"{WEIGHT:g}, from a sweep over other splits. Corruption accuracy is the mean over nine corruptions; the attack is "
    f"projected gradient ascent of {ATTACK_STEPS} steps within {ATTACK_RADIUS}; inconsistency is the variance gap "
    "between test images and their ascents."
)


def make_table(out: Path, *, quick: bool, workers: int) -> tuple[list[dict[str, Any]], str, set[str]]:
    """Return the rows of UDIM's claims, a description, and the commits.

    Args:
        out: folder of the run log.
        quick: use two seeds and a quarter of the epochs.
        workers: number of processes.
    """
    log = RunLog(out)
    return list(make_claim_rows(log, quick=quick, workers=workers)), ABOUT, log.commits


def make_claim_rows(log: RunLog, *, quick: bool, workers: int) -> Iterator[dict[str, Any]]:
    """Yield one row per claim."""
    epochs, seeds = (EPOCHS // 4, 2) if quick else (EPOCHS, SEEDS)
    steps = epochs * STEPS_AN_EPOCH
    runs = {name: [make_run(name, steps, seed) for seed in range(seeds)] for name in METHODS}
    log.complete([each[seed] for seed in range(seeds) for each in runs.values()], perform, workers=workers)
    for claim, factor in CLAIMS:
        name = CONTROL if CONTROL in claim.control else SAM_ALONE
        own, other = ([log.measured[run][claim.metric] for run in runs[each]] for each in (OURS, name))
        yield make_claim_row(claim, own, [factor * value for value in other], budget="equal epochs")


def perform(run: Run) -> Measured:
    """Train and measure one run, independent of process and time."""
    split = unseen_digits.draw_split(run.seed)
    net = train_network(run, split.images, split.labels)
    images, labels = split.test_images, split.test_labels
    gap = build_udim(net, OURS).terms(images, labels)["variance_gap"]
    corrupted = [accuracy(net, each, labels) for _, each in unseen_digits.corrupt_images(images, run.seed)]
    return {
        CLEAN: accuracy(net, images, labels),
        CORRUPTED: sum(corrupted) / len(corrupted),
        ATTACKED: accuracy(net, attack(net, images, labels), labels),
        INCONSISTENCY: float(gap.detach()),
    }


def train_network(run: Run, images: Tensor, labels: Tensor) -> nn.Module:
    """Train a network; return it in evaluation mode."""
    seed_everything(run.seed)
    net = unseen_digits.build_perceptron()
    base = partial(torch.optim.Adam, lr=run.lr, weight_decay=1e-4)
    optimizer = SAM(net.parameters(), base, rho=RHO, net=net)
    udim = build_udim(net, run.method, weight=run.value or 0.0, warmup_steps=round(WARMUP * run.steps))
    for rows in islice(draw_rows(len(images), run.seed), run.steps):
        added = udim.at_weights(images[rows], labels[rows])
        optimizer.step(partial(_compute_loss, net, images[rows], labels[rows]), at_weights=added)
    return net.eval()


def build_udim(net: nn.Module, method: str, *, weight: float = 0.0, warmup_steps: int = 0) -> UDIM:
    """Build the term that a method adds to a step.

    The weight of SAM's term is 0.
    """
    return UDIM(
        net,
        F.cross_entropy,
        InputPerturbation(RADIUS),
        lambda1=weight,
        lambda2=weight,
        rho=RHO,
        warmup_steps=warmup_steps,
        direction="random" if method == CONTROL else "ascent",
    )


def draw_rows(samples: int, seed: int) -> Iterator[Tensor]:
    """Yield the row indices of each batch without end.

    The last batch of an epoch is smaller.
    """
    epoch = 0
    while True:
        yield from torch.randperm(samples, generator=generator_for(seed, "unseen digits, order", epoch)).split(BATCH)
        epoch += 1


def attack(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Perturb images within a ball by projected gradient ascent."""
    moved = torch.zeros_like(images)
    for _ in range(ATTACK_STEPS):
        moved.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(images + moved), labels), moved)
        with torch.no_grad():
            moved = moved + 2.5 * ATTACK_RADIUS / ATTACK_STEPS * gradient / _compute_lengths(gradient)
            moved = moved * (ATTACK_RADIUS / _compute_lengths(moved)).clamp(max=1)
    return images + moved


def make_run(method: str, steps: int, seed: int) -> Run:
    """Make a run with the fixed weight."""
    return Run("unseen digits", method, None if method == SAM_ALONE else WEIGHT, LR, steps, seed, "test")


def _compute_loss(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(net(images), labels)


def _compute_lengths(images: Tensor) -> Tensor:
    lengths = images.flatten(1).norm(dim=1).clamp(min=torch.finfo(images.dtype).tiny)
    return lengths.view(-1, *(1,) * (images.ndim - 1))
