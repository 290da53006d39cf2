"""Logits and labels for tests of the losses."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F


@pytest.fixture
def sample() -> Callable[..., tuple[Tensor, Tensor]]:
    """Draw logits and a label with every class in every sample."""

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
    """Make logits of a perfect prediction with given confidence."""

    def make(label: Tensor, *, classes: int, confidence: float = 200.0) -> Tensor:
        return confidence * F.one_hot(label[:, 0], classes).movedim(-1, 1).float()

    return make
