"""Digits rotated by four training angles and one unseen test angle."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count

import torch
from scipy.ndimage import rotate
from torch import Tensor, nn

from benchmarks.claims import digits
from uumamba.runtime.seeds import generator_for
from uumamba.types import Batch

SOURCES, UNSEEN = (0, 15, 30, 45), 60
BATCH, WIDTH = 64, 128


@dataclass(frozen=True)
class RotatedDigits:
    """Images as rows of 64 numbers from 0 to 1, with labels."""

    images: Tensor
    labels: Tensor


@cache
def make_training_set(seed: int) -> RotatedDigits:
    """Return every image outside the test set, rotated by a source angle.

    The seed draws the angle of each image.
    """
    split = digits.draw_split(0)  # both parts together are the same images for every seed
    images = torch.cat([split.images, split.validation_images])
    domains = torch.randint(len(SOURCES), (len(images),), generator=generator_for(seed, "turned digits"))
    turned = torch.stack([_rotate(images, angle) for angle in SOURCES])
    return RotatedDigits(turned[domains, torch.arange(len(images))], torch.cat([split.labels, split.validation_labels]))


@cache
def make_test_set(angle: int) -> RotatedDigits:
    """Return the test set, rotated by one angle.

    It is the same for every seed.
    """
    images, labels = digits.load_test_set()
    return RotatedDigits(_rotate(images, angle), labels)


def draw_batches(training: RotatedDigits, seed: int, *key: str) -> Iterator[tuple[int, Batch]]:
    """Yield ``(epoch, batch)`` without end.

    The order is keyed by seed, key and epoch.
    """
    for epoch in count():
        order = torch.randperm(len(training.labels), generator=generator_for(seed, "turned digits", *key, epoch))
        for ids in order.split(BATCH):
            yield epoch, {"image": training.images[ids], "label": training.labels[ids]}


def build_perceptron(seed: int) -> nn.Sequential:
    """Build a perceptron with three hidden layers of 128 units.

    The seed determines its initialisation.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for width in (64, WIDTH, WIDTH):
            layers += [nn.Linear(width, WIDTH), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(WIDTH, digits.CLASSES))


def _rotate(images: Tensor, angle: int) -> Tensor:
    turned = rotate(images.numpy(), angle, axes=(2, 3), reshape=False, order=1)
    return torch.from_numpy(turned).flatten(1)
