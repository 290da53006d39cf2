"""Small float64 networks and gradients by central differences."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SmallTask:
    """Network with smooth activations, a batch, and its loss in float64."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()
        self.batch = (torch.randn(6, 3).double(), torch.tensor([0, 1, 2, 3, 0, 1]))

    def loss(self, net: nn.Module) -> Tensor:
        return F.cross_entropy(net(self.batch[0]), self.batch[1])

    def trainable(self) -> list[nn.Parameter]:
        return [param for param in self.net.parameters() if param.requires_grad]

    def gradient(self) -> Tensor:
        return torch.cat([each.flatten() for each in torch.autograd.grad(self.loss(self.net), self.trainable())])

    def gradient_at(self, offset: Tensor) -> Tensor:
        """Gradient at the weights plus an offset, by changing the weights themselves."""
        before = [param.detach().clone() for param in self.trainable()]
        with torch.no_grad():
            parts = offset.split([param.numel() for param in before])
            for param, part in zip(self.trainable(), parts, strict=True):
                param.add_(part.view_as(param))
        found = self.gradient()
        with torch.no_grad():
            for param, value in zip(self.trainable(), before, strict=True):
                param.copy_(value)
        return found


def _differentiate_numerically(function: Callable[[], float], params: list[nn.Parameter], step: float = 1e-6) -> Tensor:
    found = []
    for param in params:
        values = param.data.view(-1)
        for index in range(len(values)):
            value = values[index].item()
            ends = []
            for sign in (1, -1):
                values[index] = value + sign * step
                ends.append(function())
            values[index] = value
            found.append((ends[0] - ends[1]) / (2 * step))
    return torch.tensor(found, dtype=torch.float64)


@pytest.fixture
def task() -> SmallTask:
    return SmallTask()


@pytest.fixture(scope="session")
def differentiate_numerically() -> Callable[..., Tensor]:
    """Central differences of a function of parameters, which it changes in place."""
    return _differentiate_numerically
