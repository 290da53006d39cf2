"""Networks, batches and rules that the optimizers are tried on."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from uumamba.optim import ASAM, SAM, Plain

Problem = tuple[nn.Module, list[tuple[Tensor, Tensor]]]


@pytest.fixture
def problem() -> Callable[..., Problem]:
    """The same small network and batches each time it is called."""

    def make(*, dtype: torch.dtype = torch.float32, batches: int = 30, norm: bool = False) -> Problem:
        torch.manual_seed(7)
        middle = [nn.BatchNorm1d(8)] if norm else []
        net = nn.Sequential(nn.Linear(5, 8), *middle, nn.Tanh(), nn.Linear(8, 3)).to(dtype)
        data = [(torch.randn(6, 5).to(dtype), torch.randn(6, 3).to(dtype)) for _ in range(batches)]
        return net, data

    return make


@pytest.fixture(params=[Plain, SAM, ASAM])
def member(request: pytest.FixtureRequest) -> type[Plain | SAM | ASAM]:
    return request.param


@pytest.fixture(params=[SAM, ASAM])
def climber(request: pytest.FixtureRequest) -> type[SAM | ASAM]:
    return request.param
