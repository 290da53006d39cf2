"""scikit-learn's 1797 handwritten digits of 8 by 8 pixels.

The training set is small, the test set large, and the test set also exists in corrupted versions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from uumamba.runtime.seeds import generator_for

CLASSES = 10
TEST, TRAIN_A_CLASS = 800, 20


@dataclass(frozen=True)
class Split:
    """Training and validation images with labels.

    Images are ``(n, 1, 8, 8)`` from 0 to 1. The seed draws a small training set; the rest of the pool validates.
    """

    images: Tensor
    labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor


def draw_split(seed: int) -> Split:
    """Draw 20 training images per class; the rest of the pool validates.

    Neither part contains images of the test set.
    """
    images, labels = load_images()
    pool = _draw_order()[TEST:]
    pool = pool[torch.randperm(len(pool), generator=generator_for(seed, "digits, split"))]
    drawn = torch.cat([pool[labels[pool] == value][:TRAIN_A_CLASS] for value in range(CLASSES)])
    rest = pool[~torch.isin(pool, drawn)]
    return Split(images[drawn], labels[drawn], images[rest], labels[rest])


def load_test_set() -> tuple[Tensor, Tensor]:
    """Return the 800 test images with labels, the same for every seed."""
    images, labels = load_images()
    return images[_draw_order()[:TEST]], labels[_draw_order()[:TEST]]


def corrupt_test_set() -> Iterator[tuple[str, int, Tensor]]:
    """Yield ``(corruption, severity, images)``, the same for every seed.

    There are five corruptions at three severities.
    """
    images, _ = load_test_set()
    for name, (corrupt, severities) in CORRUPTIONS.items():
        for index, severity in enumerate(severities, start=1):
            yield name, index, corrupt(images, severity, generator_for(0, "digits", name, index))


def build_digit_net(seed: int) -> nn.Module:
    """Build a network of three convolutions with batch norms.

    The seed determines its initialisation.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return nn.Sequential(
            *_make_block(1, 16, stride=1),
            *_make_block(16, 32, stride=1),
            *_make_block(32, 32, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, CLASSES),
        )


def _make_block(channels: int, features: int, *, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(channels, features, 3, stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(features), nn.ReLU()


def _add_noise(images: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    return (images + sigma * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def _blur(images: Tensor, sigma: float, _: torch.Generator) -> Tensor:
    return torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, sigma, sigma)))


def _reduce_contrast(images: Tensor, factor: float, _: torch.Generator) -> Tensor:
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + factor * (images - mean)


def _shift(images: Tensor, pixels: float, generator: torch.Generator) -> Tensor:
    """Translate each image by ``pixels`` along a random axis and direction.

    Zeros fill the border.
    """
    axes = torch.randint(2, (len(images),), generator=generator).tolist()
    signs = torch.randint(2, (len(images),), generator=generator).tolist()
    moved = torch.zeros_like(images)
    length, by = images.shape[-1], int(pixels)
    for index, (axis, sign) in enumerate(zip(axes, signs, strict=True), start=0):
        source, target = (0, by) if sign else (by, 0)
        moved[index].narrow(axis + 1, target, length - by).copy_(images[index].narrow(axis + 1, source, length - by))
    return moved


def _occlude(images: Tensor, size: float, generator: torch.Generator) -> Tensor:
    """Set a square at a random position of each image to black."""
    images, side = images.clone(), int(size)
    corners = torch.randint(images.shape[-1] - side + 1, (len(images), 2), generator=generator).tolist()
    for image, (row, column) in zip(images, corners, strict=True):
        image[:, row : row + side, column : column + side] = 0
    return images


CORRUPTIONS: dict[str, tuple[Callable[[Tensor, float, torch.Generator], Tensor], tuple[float, ...]]] = {
    "noise": (_add_noise, (0.1, 0.2, 0.3)),
    "blur": (_blur, (0.5, 0.8, 1.1)),
    "contrast": (_reduce_contrast, (0.6, 0.4, 0.25)),
    "shift": (_shift, (1, 2, 3)),
    "occlusion": (_occlude, (2, 3, 4)),
}


@cache
def load_images() -> tuple[Tensor, Tensor]:
    """Load images ``(n, 1, 8, 8)`` from 0 to 1 and labels."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # it ships no types

    bunch = load_digits()
    images = torch.from_numpy(np.asarray(bunch.images, dtype=np.float32) / 16)
    return images[:, None], torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))


@cache
def _draw_order() -> Tensor:
    return torch.randperm(len(load_images()[1]), generator=generator_for(0, "digits, test"))
