"""Logits and labels that the losses are tried on."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F


@pytest.fixture
def sample() -> Callable[..., tuple[Tensor, Tensor]]:
    """Random logits and a label in which every class is present in every sample."""

    def make(*shape: int, classes: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        batch, *spatial = shape
        logits = torch.randn(batch, classes, *spatial, generator=generator, dtype=dtype)
        label = torch.randint(0, classes, (batch, 1, *spatial), generator=generator)
        label.flatten(1)[:, :classes] = torch.arange(classes)
        return logits.requires_grad_(), label

    return make


@pytest.fixture
def perfect() -> Callable[..., Tensor]:
    """Logits that are as sure as asked of the label's class."""

    def make(label: Tensor, *, classes: int, sureness: float = 200.0) -> Tensor:
        return sureness * F.one_hot(label[:, 0], classes).movedim(-1, 1).float()

    return make
