"""Digits with a bar that shows the class in most images.

All but a tenth of the images have a bar of pixels that shows the class. The images without a bar are learned slowly, so
the slow examples are known.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.claims.digits import CLASSES, draw_split, load_test_set
from uumamba.runtime.seeds import generator_for

BAR_LESS, AMPLITUDE = 0.1, 3.0


@dataclass(frozen=True)
class Examples:
    """Flat images with labels and a mask of those without a bar.

    The shapes are ``(n, features)``, ``(n,)`` and ``(n,)``.
    """

    images: Tensor
    labels: Tensor
    bar_less: Tensor


def make_training_set(seed: int, *, bar: bool) -> Examples:
    """Return all 997 images outside the test set, shuffled by the seed."""
    split = draw_split(seed)
    images = torch.cat([split.images, split.validation_images])
    labels = torch.cat([split.labels, split.validation_labels])
    return _add_bar(images, labels, seed, "training", bar=bar)


def make_test_set(seed: int, *, bar: bool) -> Examples:
    """Return the 800 test images, the same for every seed.

    The seed draws the images that have a bar.
    """
    return _add_bar(*load_test_set(), seed, "test", bar=bar)


def build_net(features: int) -> nn.Module:
    """Build a perceptron with two hidden layers from the global generator."""
    widths = (features, 128, 128)
    hidden = [part for pair in pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(widths[-1], CLASSES))


def _add_bar(images: Tensor, labels: Tensor, seed: int, part: str, *, bar: bool) -> Examples:
    """Append a class bar of ten pixels to most of the images.

    A tenth of the images gets none.

    The pixel of the class is lit. Without ``bar`` no image gets one.
    """
    flat = images.flatten(1)
    if not bar:
        return Examples(flat, labels, torch.ones(len(labels), dtype=torch.bool))
    order = torch.randperm(len(labels), generator=generator_for(seed, "class bar", part))
    bar_less = torch.zeros(len(labels), dtype=torch.bool)
    bar_less[order[: round(BAR_LESS * len(labels))]] = True
    pixels = AMPLITUDE * F.one_hot(labels, CLASSES) * ~bar_less[:, None]
    return Examples(torch.cat([flat, pixels], dim=1), labels, bar_less)
