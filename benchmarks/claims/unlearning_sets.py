"""Samples to forget, to retain and unseen, of digits and text."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from benchmarks.claims import text
from benchmarks.claims.digits import draw_split, load_test_set
from benchmarks.claims.settings import pretrain
from benchmarks.claims.unseen_digits import build_perceptron
from uumamba.runtime.seeds import generator_for, seed_everything

DIGITS, PASSAGES = "noisy digits", "passages"
FIRST_TUNING_SEED = 1000
"""Seeds from here on choose numbers; their unseen samples are others than those of smaller seeds."""
NOISE, TRAINING, FORGOTTEN, KNOWN = 0.4, 240, 80, 20
"""Noise of the images, and numbers of images: to train on, of them to forget, of these known to the attacker."""
PIECES, KNOWN_PIECES, TEXTS, FORGOTTEN_TEXTS = 8, 2, 16, 4
"""Pieces of a passage, of them known to the attacker, and numbers of passages: to train on, of them to forget."""
UNSEEN_PIECES = 128


@dataclass(frozen=True)
class Samples:
    """Inputs with labels, one or one per character."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor | slice) -> "Samples":
        return Samples(self.inputs[rows], self.labels[rows])

    def join(self, other: "Samples") -> "Samples":
        """Append other samples."""
        return Samples(torch.cat([self.inputs, other.inputs]), torch.cat([self.labels, other.labels]))

    def split(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """Return batches in order."""
        return list(zip(self.inputs.split(size), self.labels.split(size), strict=True))

    def draw_batch(self, size: int, *key: int | str) -> tuple[Tensor, Tensor]:
        """Draw samples with replacement, keyed by ``key``."""
        rows = torch.randint(len(self), (size,), generator=generator_for(*key))
        return self.inputs[rows], self.labels[rows]


@dataclass(frozen=True)
class ForgetTask:
    """Samples of one seed.

    Attributes:
        known: samples to forget that the attacker has.
        hidden: the other samples to forget, on which forgetting and relearning are measured.
        retain: the other samples of the training set.
        unseen: samples of the same kind that no network was trained on.
        others: as many samples outside the training set as are in it, of which shadow models see halves; or None.
    """

    known: Samples
    hidden: Samples
    retain: Samples
    unseen: Samples
    others: Samples | None = None

    @property
    def forget(self) -> Samples:
        """All samples to forget."""
        return self.known.join(self.hidden)


@dataclass(frozen=True)
class UnlearningSetting:
    """Data, network and lengths of training.

    Attributes:
        draw: function from a seed to its samples.
        build: function from a seed to the network at its start.
        lr: learning rate of Adam in training.
        batch: batch size in training, and of each set in unlearning.
        training: training steps per step of unlearning.
        steps: steps of unlearning.
        lrs: smallest and largest learning rate of unlearning.
        betas: smallest and largest beta of NPO.
    """

    draw: Callable[[int], ForgetTask]
    build: Callable[[int], nn.Module]
    lr: float
    batch: int
    training: int
    steps: int
    lrs: tuple[float, float]
    betas: tuple[float, float]


def draw_digits(seed: int) -> ForgetTask:
    """Draw 240 noisy digits to train on, 80 of them to forget.

    Unseen are 517 images of the same pool for a seed that chooses numbers, otherwise the 800 of the test set.
    """
    split = draw_split(seed)
    pool = Samples(split.images, split.labels).join(Samples(split.validation_images, split.validation_labels))
    order = torch.randperm(len(pool), generator=generator_for(seed, "unlearning, order"))  # the split is by class
    samples = _add_noise(pool[order], seed, "pool")
    test = _add_noise(Samples(*load_test_set()), seed, "test")
    return ForgetTask(
        samples[:KNOWN],
        samples[KNOWN:FORGOTTEN],
        samples[FORGOTTEN:TRAINING],
        samples[2 * TRAINING :] if seed >= FIRST_TUNING_SEED else test,
        samples[TRAINING : 2 * TRAINING],
    )


def draw_passages(seed: int) -> ForgetTask:
    """Draw 16 passages of the language reference, 4 of them to forget.

    A passage has 8 pieces of 64 characters; the attacker knows the first two of each. Unseen are pieces of other
    passages of the same topics for a seed that chooses numbers, otherwise those of held-out topics.
    """
    training, held_out = text.load_domain("reference")
    length = PIECES * text.LENGTH
    order = torch.randperm(len(training) // length - 1, generator=generator_for(seed, "unlearning, passages"))
    starts = length * order[: TEXTS + UNSEEN_PIECES, None] + text.LENGTH * torch.arange(PIECES)
    unseen = Samples(*text.cut_pieces(held_out, count=UNSEEN_PIECES))
    if seed >= FIRST_TUNING_SEED:
        unseen = _cut(training, starts[TEXTS:, :1])
    return ForgetTask(
        _cut(training, starts[:FORGOTTEN_TEXTS, :KNOWN_PIECES]),
        _cut(training, starts[:FORGOTTEN_TEXTS, KNOWN_PIECES:]),
        _cut(training, starts[FORGOTTEN_TEXTS:TEXTS]),
        unseen,
    )


def _add_noise(samples: Samples, seed: int, part: str) -> Samples:
    noise = torch.randn(samples.inputs.shape, generator=generator_for(seed, "unlearning, noise", part))
    return Samples(samples.inputs + NOISE * noise, samples.labels)


def _cut(characters: Tensor, starts: Tensor) -> Samples:
    pieces = characters[starts.flatten()[:, None] + torch.arange(text.LENGTH + 1)]
    return Samples(pieces[:, :-1], pieces[:, 1:])


def _build_digit_net(seed: int) -> nn.Module:
    seed_everything(seed)
    return build_perceptron()


def _build_language_model(seed: int) -> nn.Module:
    net = text.CharacterNet()
    net.load_state_dict(pretrain())
    return net


UNLEARNING_SETTINGS: Mapping[str, UnlearningSetting] = {
    DIGITS: UnlearningSetting(
        cache(draw_digits),
        _build_digit_net,
        lr=1e-3,
        batch=32,
        training=20,
        steps=50,
        lrs=(5e-4, 1e-2),
        betas=(0.1, 3.0),
    ),
    PASSAGES: UnlearningSetting(
        cache(draw_passages),
        _build_language_model,
        lr=3e-3,
        batch=16,
        training=4,
        steps=100,
        lrs=(2e-3, 8e-3),
        betas=(0.15, 0.6),
    ),
}
