"""scikit-learn's digits as one domain, with nine unseen corruptions."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from scipy import ndimage
from torch import Generator, Tensor, nn

from benchmarks.claims.digits import load_images
from uumamba.runtime.seeds import generator_for

TRAINING = 1078  # 60 % of 1797


@dataclass(frozen=True)
class Split:
    """Images ``(n, 1, 8, 8)`` from 0 to 1 with labels."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def draw_split(seed: int) -> Split:
    """Draw 60 % of the images for training, the others for testing."""
    images, labels = load_images()
    order = torch.randperm(len(labels), generator=generator_for(seed, "unseen digits, split"))
    train, test = order[:TRAINING], order[TRAINING:]
    return Split(images[train], labels[train], images[test], labels[test])


def corrupt_images(images: Tensor, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield ``(name, images)`` for each corruption; the seed draws the noise."""
    for name, corrupt in CORRUPTIONS.items():
        yield name, corrupt(images, generator_for(seed, "unseen digits", name))


def build_perceptron() -> nn.Module:
    """Build a 64-128-128-10 perceptron with torch's generator."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def _make_noise(sigma: float) -> Callable[[Tensor, Generator], Tensor]:
    return lambda images, generator: images + sigma * torch.randn(images.shape, generator=generator)


def _add_impulses(images: Tensor, generator: Generator) -> Tensor:
    """Set a fifth of the pixels to black or white."""
    hit = torch.rand(images.shape, generator=generator) < 0.2
    white = torch.rand(images.shape, generator=generator) < 0.5
    return torch.where(hit, white.to(images), images)


def _reduce_contrast(images: Tensor, _: Generator) -> Tensor:
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + 0.3 * (images - mean)


def _brighten(images: Tensor, _: Generator) -> Tensor:
    return images + 0.5


def _blur(images: Tensor, _: Generator) -> Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(images.numpy(), (0, 0, 0.8, 0.8)))


def _make_rotation(degrees: float) -> Callable[[Tensor, Generator], Tensor]:
    def rotate(images: Tensor, _: Generator) -> Tensor:
        return torch.from_numpy(ndimage.rotate(images.numpy(), degrees, axes=(2, 3), reshape=False, order=1))

    return rotate


def _shift(images: Tensor, _: Generator) -> Tensor:
    """Shift down by one pixel; zeros fill the border."""
    return torch.nn.functional.pad(images[:, :, :-1], (0, 0, 1, 0))


CORRUPTIONS: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "noise 0.3": _make_noise(0.3),
    "noise 0.5": _make_noise(0.5),
    "impulses": _add_impulses,
    "low contrast": _reduce_contrast,
    "brighter": _brighten,
    "blurred": _blur,
    "turned by 20": _make_rotation(20),
    "turned by -30": _make_rotation(-30),
    "shifted": _shift,
}
