"""Small clients and methods that every way to run rounds trains."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.federated import Client, DFedSAM, Isolated, Simulation, exponential, one_peer_exponential, ring
from uumamba.optim import SAM, Plain

CLIENTS = 4
SGD = partial(torch.optim.SGD, lr=0.1)
MOMENTUM = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)
SAM_SGD = partial(SAM, base=SGD, rho=0.1)


class Unchecked(Plain):
    """Optimizer that updates also with a gradient that is not finite."""

    def _update(self, params: Any) -> None:
        self.base.step()


def objective(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(net(batch[0]), batch[1])


METHODS = {
    "several gossip steps": DFedSAM(objective, SAM_SGD, ring(CLIENTS), local_steps=3, gossip_steps=3),
    "kept momentum": DFedSAM(objective, partial(Plain, base=MOMENTUM), ring(CLIENTS), keep_momentum=True),
    "absent clients": DFedSAM(objective, SAM_SGD, ring(CLIENTS), participation=0.6, gossip_steps=2, seed=1),
    "directed": DFedSAM(objective, SAM_SGD, exponential(CLIENTS), lr_factor=lambda number: 0.9**number),
    "schedule": DFedSAM(objective, SAM_SGD, one_peer_exponential(CLIENTS)),
    "alone": DFedSAM(objective, SAM_SGD, Isolated(CLIENTS)),
    "a site that is not finite": DFedSAM(objective, partial(Unchecked, base=SGD), ring(CLIENTS), gossip_steps=2),
}
ROUNDS = 3


def make_net(*, hidden: int = 8, seed: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, hidden), nn.BatchNorm1d(hidden), nn.Tanh(), nn.Dropout(0.2), nn.Linear(hidden, 4))


def make_client(index: int, *, is_poisoned: bool = False) -> Client:
    generator = torch.Generator().manual_seed(100 + index)
    x = torch.randn(12, 6, generator=generator)
    labels = torch.randint(4, (12,), generator=generator)
    return Client.from_tensors(f"site_{index + 1}", x * float("nan") if is_poisoned else x, labels, batch_size=5)


def make_example_client(example: str, index: int) -> Client:
    return make_client(index, is_poisoned=example == "a site that is not finite" and index == 2)


def simulate(example: str, *, rounds: int = ROUNDS) -> tuple[Simulation, list[Any]]:
    """Return the simulation after its rounds, and their records."""
    clients = [make_example_client(example, index) for index in range(CLIENTS)]
    simulation = Simulation(make_net(), clients, METHODS[example])
    return simulation, list(simulation.run(rounds))
