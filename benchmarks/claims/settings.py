"""Two settings for quick tests of claims: digits and text.

Digits are trained from scratch, text is fine-tuned.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.claims import digits, text
from benchmarks.claims.measures import accuracy, largest_eigenvalue, perplexity, surrogate_gap
from benchmarks.claims.members import MEMBERS
from benchmarks.claims.run_log import Measured, Run
from benchmarks.claims.training import Recipe, train
from uumamba.runtime.seeds import generator_for, seed_everything
from uumamba.types import Batch

GAP_RHO = 0.05
BATCH = 25
OTHER_DOMAINS = ("docstrings", "code")
PRETRAINING_STEPS = 600
WITH_NOISE = ("TRAM, noise", "TRAM, fisher")
"""Methods that add noise; it is added to the embeddings, as characters are discrete."""


@dataclass(frozen=True)
class Setting:
    """Length of training, learning rates to try, and the selection measure."""

    steps: int
    lrs: tuple[float, ...]
    chosen_by: str
    better: str


SETTINGS: Mapping[str, Setting] = {
    "digits": Setting(240, (0.03, 0.1, 0.3), "validation accuracy", "higher"),
    "text": Setting(120, (0.0003, 0.001, 0.003), "validation perplexity", "lower"),
}


def perform(run: Run) -> Measured:
    """Train and measure one run, independent of process and time."""
    return {"digits": run_digits, "text": run_text}[run.setting](run)


def run_digits(run: Run) -> Measured:
    """Train the digit classifier on 200 images from scratch, and measure it."""
    split = digits.draw_split(run.seed)
    recipe = make_digits_recipe(run)
    train(recipe, draw_digit_batches(split, run.seed), steps=run.steps)
    net = recipe.net
    if run.measures == "validation":
        return {"validation accuracy": accuracy(net, split.validation_images, split.validation_labels)}
    images, labels = digits.load_test_set()
    corrupted = [accuracy(net, each, labels) for _, _, each in digits.corrupt_test_set()]
    on_training_set = partial(_compute_loss, images=split.images, labels=split.labels)
    return {
        "test accuracy": accuracy(net, images, labels),
        "corruption accuracy": sum(corrupted) / len(corrupted),
        "training accuracy": accuracy(net, split.images, split.labels),
        "largest eigenvalue": largest_eigenvalue(net, on_training_set),
        "surrogate gap": surrogate_gap(net, on_training_set, rho=GAP_RHO),
    }


def make_digits_recipe(run: Run) -> Recipe:
    """Make the recipe of a run on digits, around SGD with momentum."""
    seed_everything(run.seed)
    base = partial(torch.optim.SGD, lr=run.lr, momentum=0.9, weight_decay=5e-4)
    extra: dict[str, Any] = {}
    if run.method == "SAF":
        extra = {"samples": digits.CLASSES * digits.TRAIN_A_CLASS, "classes": digits.CLASSES}
    return MEMBERS[run.method].build(digits.build_digit_net(run.seed), nn.CrossEntropyLoss(), base, run.value, **extra)


def draw_digit_batches(split: digits.Split, seed: int) -> Iterator[tuple[int, Batch]]:
    """Yield batches without end, in an order keyed by seed and epoch."""
    for epoch in count():
        order = torch.randperm(len(split.labels), generator=generator_for(seed, "digits, order", epoch))
        for ids in order.split(BATCH):
            yield epoch, {"image": split.images[ids], "label": split.labels[ids], "sample_id": ids}


def run_text(run: Run) -> Measured:
    """Fine-tune the language model on the language reference, and measure it.

    The model is pre-trained on docstrings and code.
    """
    recipe = make_text_recipe(run)
    train(recipe, draw_text_batches(run.seed), steps=run.steps)
    name = "validation perplexity" if run.measures == "validation" else "own domain's perplexity"
    measured = {name: _measure_perplexity(recipe.net, "reference")}
    if run.measures == "validation":
        return measured
    others = {f"perplexity of {other}": _measure_perplexity(recipe.net, other) for other in OTHER_DOMAINS}
    mean = torch.tensor(list(others.values()), dtype=torch.float64).log().mean().exp()
    return measured | others | {"other domains' perplexity": float(mean)}


def make_text_recipe(run: Run) -> Recipe:
    """Make the recipe of a run on text, around AdamW."""
    seed_everything(run.seed)
    net = text.CharacterNet()
    net.load_state_dict(pretrain())
    extra: dict[str, Any] = {"noise_at": net.embedding} if run.method in WITH_NOISE else {}
    base = partial(torch.optim.AdamW, lr=run.lr)
    return MEMBERS[run.method].build(net, nn.CrossEntropyLoss(), base, run.value, **extra)


def draw_text_batches(seed: int) -> Iterator[tuple[int, Batch]]:
    """Yield batches of the language reference without end."""
    training, _ = text.load_domain("reference")
    return ((0, text.draw_batch(training, seed, "text", step)) for step in count())


@cache
def pretrain() -> dict[str, Tensor]:
    """Return the weights pre-trained on both other domains' training parts.

    They are cached per process and deterministic.
    """
    seed_everything(0)
    net = text.CharacterNet()
    corpora = [text.load_domain(name)[0] for name in OTHER_DOMAINS]
    base = partial(torch.optim.AdamW, lr=3e-3)
    pieces = ((0, text.draw_batch(corpora[step % 2], "pre-training", step)) for step in count())
    train(MEMBERS["base"].build(net, nn.CrossEntropyLoss(), base), pieces, steps=PRETRAINING_STEPS, warmup_steps=20)
    return net.state_dict()


def _measure_perplexity(net: nn.Module, domain: str) -> float:
    return perplexity(net, *text.cut_pieces(text.load_domain(domain)[1], count=512))


def _compute_loss(net: nn.Module, *, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(net(images), labels)
