"""Fixtures of the family: members, and a small network that they train."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD, Optimizer

from tests.optim.shared_parts import ADAMW, MOMENTUM
from tests.optim_members import OPTIMIZERS
from uumamba.optim import MESA, SAF, SAM, OutputBiasForgetting, SharpnessAware, norm_layers_only

Batch = dict[str, Tensor]
Spoil = Callable[[int, Tensor], Tensor]
BASES = {
    "SGD": partial(SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "AdamW": ADAMW,
    "Lion of another package": partial(pytorch_optimizer.Lion, lr=0.01),
}


@dataclass(frozen=True)
class Member:
    """Way to train, with the passes of a later step."""

    make: Callable[..., SharpnessAware]
    passes: int = 2
    ascent: Any = None
    groups: Callable[[nn.Module], Any] = nn.Module.parameters
    objective: Callable[[nn.Module], nn.Module | None] = lambda net: None


PASSES = {"Plain": 1, "MSAM": 1, "StaleSAM": 1, "TRAM previous": 3, "TRAM initial": 3, "TRAM noise": 3}
MEMBERS = {name: Member(make, passes=PASSES.get(name, 2)) for name, make in OPTIMIZERS.items()} | {
    "norm layers only": Member(SAM, groups=norm_layers_only),
    "output-bias forgetting": Member(SAM, ascent=OutputBiasForgetting()),
    "MESA": Member(SAM, objective=lambda net: MESA(nn.CrossEntropyLoss(), net, decay=0.8)),
    "SAF": Member(SAM, objective=lambda net: SAF(nn.CrossEntropyLoss(), samples=6, classes=4, lag=1, start_epoch=1)),
}


class Training:
    """Small network and a member of the family around a base.

    ``spoil(call, logits)`` may change the logits of each call of a closure, counted from 1, or raise.
    """

    def __init__(
        self,
        name: str,
        base: Callable[..., Optimizer] = MOMENTUM,
        *,
        dtype: torch.dtype = torch.float64,
        middle: Callable[[], nn.Module] = lambda: nn.BatchNorm1d(8),
        net: nn.Module | None = None,
        groups: Callable[[nn.Module], Any] | None = None,
        **options: Any,
    ) -> None:
        self.member = MEMBERS[name]
        torch.manual_seed(7)
        layers = nn.Sequential(nn.Linear(5, 8), middle(), nn.Tanh(), nn.Linear(8, 4))
        self.net = (layers if net is None else net).to(dtype)
        self.dtype = dtype
        params = (groups or self.member.groups)(self.net)
        self.objective = self.member.objective(self.net)
        self.optimizer = self.member.make(params, base, net=self.net, **options)
        self.seen: list[Tensor] = []

    @property
    def weights(self) -> Tensor:
        """A copy of all weights in one vector."""
        return parameters_to_vector(self.net.parameters()).detach().clone()

    def batches(self, number: int) -> list[Batch]:
        """Draw the same batches in each call."""
        generator = torch.Generator().manual_seed(8)
        return [
            {
                "image": torch.randn(6, 5, generator=generator, dtype=torch.float64).to(self.dtype),
                "label": torch.randint(4, (6,), generator=generator),
                "sample_id": torch.arange(6),
            }
            for _ in range(number)
        ]

    def closure(self, batch: Batch, spoil: Spoil = lambda call, logits: logits) -> Callable[[], Any]:
        """Make a pass over a batch; it stores its weights in ``seen``."""
        calls = count(1)

        def forward(image: Tensor) -> Tensor:
            return spoil(next(calls), self.net(image))

        def closure() -> Any:
            self.seen.append(self.weights)
            if self.objective is not None:
                return self.objective(forward, batch)
            logits = forward(batch["image"])
            return F.cross_entropy(logits, batch["label"]), (logits, batch["label"])

        return closure

    def step(self, closure: Any, **options: Any) -> Tensor:
        """Take one step, which is an epoch of its own for SAF."""
        self.seen.clear()
        if isinstance(self.objective, SAF):
            self.objective.begin_epoch(0 if self.objective.epoch is None else self.objective.epoch + 1)
        loss = self.optimizer.step(closure, **({"ascent": self.member.ascent} | options))
        if isinstance(self.objective, MESA):
            self.objective.after_step(self.net)
        return loss

    def train(self, batches: list[Batch]) -> list[Tensor]:
        """Take one step per batch."""
        return [self.step(self.closure(batch)) for batch in batches]


@pytest.fixture
def training() -> type[Training]:
    """``training(name, base, ...)``: a network and a member by its name."""
    return Training


@pytest.fixture(params=MEMBERS)
def member(request: pytest.FixtureRequest) -> str:
    """Every member of the family, by name."""
    return request.param


@pytest.fixture(params=[name for name in MEMBERS if name != "Plain"])
def sharpness_aware(request: pytest.FixtureRequest) -> str:
    """Every member that perturbs the weights, by name."""
    return request.param


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest) -> Callable[..., Optimizer]:
    """Each base optimizer."""
    return BASES[request.param]
