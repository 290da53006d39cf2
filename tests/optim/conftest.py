"""Members of the family, and the small network and batches that they are tried on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import SGD, Optimizer

from uumamba.optim import (
    ASAM,
    GSAM,
    MESA,
    MSAM,
    SAF,
    SAGM,
    SAM,
    TRAM,
    AdaptiveTrigger,
    FriendlySAM,
    LookSAM,
    OutputBiasForgetting,
    Plain,
    SharpnessAware,
    StaleSAM,
    norm_layers_only,
)

MOMENTUM = partial(SGD, lr=0.05, momentum=0.9)
Batch = dict[str, Tensor]
Make = Callable[..., SharpnessAware]
Spoil = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Member:
    """One way to train, and its forward passes in a step that follows others."""

    make: Make
    passes: int = 2
    ascent: Any = None
    groups: Callable[[nn.Module], Any] = nn.Module.parameters
    objective: Callable[[nn.Module], nn.Module | None] = lambda net: None


ALWAYS = AdaptiveTrigger(total_steps=5, start=-1e9, end=-1e9)
MEMBERS = {
    "Plain": Member(Plain, passes=1),
    "SAM": Member(SAM),
    "ASAM": Member(ASAM),
    "GSAM": Member(GSAM),
    "FriendlySAM": Member(FriendlySAM),
    "LookSAM": Member(partial(LookSAM, k=2)),
    "LookSAM triggered": Member(partial(LookSAM, trigger=ALWAYS)),
    "MSAM": Member(MSAM, passes=1),
    "StaleSAM": Member(StaleSAM, passes=1),
    "SAGM": Member(SAGM),
    "TRAM previous": Member(partial(TRAM, trust="previous"), passes=3),
    "TRAM initial": Member(partial(TRAM, trust="initial"), passes=3),
    "TRAM noise": Member(partial(TRAM, trust="noise"), passes=3),
    "TRAM fisher": Member(partial(TRAM, trust="fisher")),
    "norm layers only": Member(SAM, groups=norm_layers_only),
    "output-bias forgetting": Member(SAM, ascent=OutputBiasForgetting()),
    "MESA": Member(SAM, objective=lambda net: MESA(nn.CrossEntropyLoss(), net, decay=0.8)),
    "SAF": Member(SAM, objective=lambda net: SAF(nn.CrossEntropyLoss(), samples=6, classes=4, lag=1, start_epoch=1)),
}


class Training:
    """A small network and a member of the family around a base.

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
        """The same batches each time."""
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
        """A pass over a batch; the weights of each call are kept in ``seen``."""
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
        """One step, whose passes are kept in ``seen``; for MESA and SAF it ends an epoch."""
        self.seen.clear()
        if isinstance(self.objective, SAF):
            self.objective.begin_epoch(0 if self.objective.epoch is None else self.objective.epoch + 1)
        loss = self.optimizer.step(closure, **({"ascent": self.member.ascent} | options))
        if isinstance(self.objective, MESA):
            self.objective.after_step(self.net)
        return loss

    def train(self, batches: list[Batch]) -> list[Tensor]:
        """One step a batch."""
        return [self.step(self.closure(batch)) for batch in batches]


@pytest.fixture
def training() -> type[Training]:
    """``training(name, base, ...)``: a network and a member by its name."""
    return Training


@pytest.fixture
def members() -> dict[str, Member]:
    """Every way to train that the contract knows."""
    return MEMBERS


@pytest.fixture(params=MEMBERS)
def member(request: pytest.FixtureRequest) -> str:
    """Every member of the family, by name."""
    return request.param


@pytest.fixture(params=[name for name in MEMBERS if name != "Plain"])
def climber(request: pytest.FixtureRequest) -> str:
    """Every member that perturbs the weights, by name."""
    return request.param


Gradient = Callable[[Tensor], Tensor]
Formula = Callable[[Tensor, Iterator[Gradient]], Tensor]


@pytest.fixture
def equals_formula() -> Callable[..., SharpnessAware]:
    """Assert that 20 steps of an optimizer give the weights of a formula, in float64.

    The formula gets the weights as one vector and, for each step, the gradient as a function of such a vector.
    """

    def check(formula: Formula, make: Make, base: Callable[..., Optimizer], *, rtol: float = 1e-9) -> SharpnessAware:
        torch.manual_seed(7)
        net, other = (nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double() for _ in "ab")
        other.load_state_dict(net.state_dict())
        batches = [(torch.randn(6, 5).double(), torch.randn(6, 3).double()) for _ in range(20)]

        def gradient(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
            vector_to_parameters(weights, other.parameters())
            found = torch.autograd.grad(F.mse_loss(other(x), y), list(other.parameters()))
            return torch.cat([part.flatten() for part in found])

        start = parameters_to_vector(other.parameters()).detach()
        expected = formula(start, (partial(gradient, x, y) for x, y in batches))
        optimizer = make(net.parameters(), base)
        for x, y in batches:
            optimizer.step(lambda x=x, y=y: F.mse_loss(net(x), y))
        torch.testing.assert_close(
            parameters_to_vector(net.parameters()).detach(), expected, rtol=rtol, atol=rtol / 100
        )
        return optimizer

    return check
