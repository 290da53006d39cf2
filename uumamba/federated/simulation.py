"""Decentralized training of many clients in one process."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Annotated, Any

import numpy as np
from torch import nn

from uumamba.federated.clients import Client, check_clients
from uumamba.federated.dfedsam import DFedSAM
from uumamba.federated.gossip import consensus_distance, mean_weights, mix
from uumamba.federated.isolation import check_may_isolate
from uumamba.federated.local_training import ClientState, LocalResult, LocalTraining
from uumamba.runtime.errors import require
from uumamba.runtime.network import evaluating
from uumamba.runtime.options import EXPLAINED, NonNegativeInt, check_options


@dataclass(frozen=True)
class RoundRecord:
    """Record of one round.

    Attributes:
        round: number of the round, from 0.
        loss: mean loss of the local steps over the clients that took part.
        consensus_distance: root mean square distance of the clients from their mean, after gossip.
        sent_bytes: bytes of weights that all clients sent.
        present: number of clients that took part.
        isolated: names of clients whose weights or statistics were not finite; they were treated as absent.
        skipped_steps: local steps without an update, as a gradient was not finite, by client that took part.
    """

    round: int
    loss: float
    consensus_distance: float
    sent_bytes: int
    present: int
    isolated: tuple[str, ...] = ()
    skipped_steps: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """Scores of the three kinds of models, on the same data.

    Attributes:
        by_client: score of each client's own model, by name.
        consensus: score of the mean model.
    """

    by_client: Mapping[str, float]
    consensus: float

    @property
    def mean(self) -> float:
        """Mean score of the clients' own models."""
        return fmean(self.by_client.values())

    @property
    def worst(self) -> float:
        """Lowest score of the clients' own models."""
        return min(self.by_client.values())


class Simulation:
    """Decentralized training of many clients with one network object.

    The weights of all clients are rows of one matrix. Each client's local steps run in turn; then the matrix is
    multiplied by the gossip matrix. Memory is that of the rows, time is linear in the number of clients for sparse
    graphs. All clients start from the network's weights.

    A client whose weights or running statistics are not finite after its local steps is isolated for the round: it
    keeps its weights from before and exchanges nothing. On a directed graph, which cannot be without a client, an error
    ends the round. After an error all clients have their weights from before the round.

    Args:
        net: the network, which is not the model of any client: its weights are overwritten.
        clients: one client for each row of the gossip matrix, each with a name of its own.
        method: local training and gossip.

    Raises:
        UsageError: the number of clients differs from the topology's, or a name occurs twice.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from uumamba.federated import ring
        >>> from uumamba.optim import SAM
        >>> clients = [Client.from_tensors(f"site {i}", torch.full((8, 1), float(i))) for i in range(4)]
        >>> method = DFedSAM(
        ...     lambda net, batch: ((net(batch[0]) - 1) ** 2).mean(),
        ...     partial(SAM, base=partial(torch.optim.SGD, lr=0.05), rho=0.01),
        ...     ring(4),
        ...     gossip_steps=2,
        ... )
        >>> simulation = Simulation(nn.Linear(1, 1), clients, method)
        >>> records = list(simulation.run(rounds=3))
        >>> [(record.round, record.sent_bytes) for record in records]  # 4 clients * 2 neighbours * 2 steps * 2 floats
        [(0, 128), (1, 128), (2, 128)]
        >>> model = simulation.consensus_model()
    """

    @check_options
    def __init__(self, net: nn.Module, clients: Annotated[Sequence[Client], EXPLAINED], method: DFedSAM) -> None:
        check_clients(clients, method.topology.clients, method.topology.name)
        self.net, self.clients, self.method = net, list(clients), method
        self.round = 0
        self._training = LocalTraining(net, method)
        start = self._training.initial_state()
        self.weights = start.weights.repeat(len(self.clients), 1)
        """Weights of all clients, of shape ``(clients, size)``."""
        self._buffers = [start.buffers] * len(self.clients)
        self._optimizers: list[Mapping[str, Any]] = [{} for _ in self.clients]

    @check_options
    def run(self, rounds: NonNegativeInt) -> Iterator[RoundRecord]:
        """Run rounds and yield a record after each."""
        for _ in range(rounds):
            yield self.run_round()

    def run_round(self) -> RoundRecord:
        """Run the local steps of the present clients, then the gossip steps."""
        method, number = self.method, self.round
        present = method.draw_present(number)
        results = {int(index): self._train(int(index)) for index in np.flatnonzero(present)}
        failed = [index for index, result in results.items() if not result.is_finite]
        check_may_isolate([self.clients[index].name for index in failed], method.topology, number)
        present[failed] = False
        weights = self.weights.clone()
        for index in np.flatnonzero(present).tolist():
            weights[index] = results[index].state.weights
        first = method.first_gossip_step(number)
        weights = mix(weights, method.topology, first_step=first, steps=method.gossip_steps, present=present)
        sent = sum(method.topology.count_messages(first + step, present) for step in range(method.gossip_steps))
        self.weights, self.round = weights, number + 1
        for index in np.flatnonzero(present).tolist():
            self._buffers[index] = results[index].state.buffers
            self._optimizers[index] = results[index].state.optimizer
        losses = [result.loss for index, result in results.items() if index not in failed]
        return RoundRecord(
            number,
            loss=fmean(losses) if losses else float("nan"),
            consensus_distance=consensus_distance(weights),
            sent_bytes=sent * weights.shape[1] * weights.element_size(),
            present=int(present.sum()),
            isolated=tuple(self.clients[index].name for index in failed),
            skipped_steps={self.clients[index].name: each.skipped_steps for index, each in results.items()},
        )

    def state(self, index: int) -> ClientState:
        """Return a client's weights, buffers and kept optimizer state."""
        return ClientState(self.weights[index], self._buffers[index], self._optimizers[index])

    def client_model(self, index: int) -> nn.Module:
        """Return a copy of the network with a client's weights; see :meth:`load_client`."""
        return copy.deepcopy(self.load_client(index))

    def consensus_model(self) -> nn.Module:
        """Return a copy of the network with the clients' mean weights."""
        return copy.deepcopy(self.load_consensus())

    def load_client(self, index: int) -> nn.Module:
        """Load a client's weights into the network, and return it.

        Running statistics are recomputed on some of its batches.
        """
        return self._training.load_model(self.state(index), [self.clients[index]], self.round)

    def load_consensus(self) -> nn.Module:
        """Load the clients' mean weights into the network, and return it.

        Running statistics are recomputed on some batches of every client.
        """
        mean = ClientState(mean_weights(self.weights), self._buffers[0])
        return self._training.load_model(mean, self.clients, self.round)

    def score(self, metric: Callable[[nn.Module], float]) -> Scores:
        """Score each client's own model and the mean model.

        Args:
            metric: returns the score of a network in evaluation mode, higher is better, on the same data for all.
        """
        by_client: dict[str, float] = {}
        with evaluating(self.net):
            for index, client in enumerate(self.clients):
                by_client[client.name] = float(metric(self.load_client(index)))
            return Scores(by_client, float(metric(self.load_consensus())))

    def state_dict(self) -> dict[str, Any]:
        """Return all clients' states as a tree of tensors and plain values."""
        return {
            "round": self.round,
            "clients": [client.name for client in self.clients],
            "weights": self.weights.clone(),
            "buffers": [dict(buffers) for buffers in self._buffers],
            "optimizers": [dict(optimizer) for optimizer in self._optimizers],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a stored state, as if there had been no stop.

        Raises:
            UsageError: the state has other clients or weights of another shape.
        """
        names = [client.name for client in self.clients]
        require(state["clients"] == names, "clients", got=state["clients"], expected=f"{names}, as before the stop")
        for name, weights in zip(names, state["weights"], strict=True):
            self._training.flat.check(weights, source=name)
        self.round, self.weights = state["round"], state["weights"].clone()
        self._buffers = [dict(buffers) for buffers in state["buffers"]]
        self._optimizers = [dict(optimizer) for optimizer in state["optimizers"]]

    def _train(self, index: int) -> LocalResult:
        try:
            return self._training.run(self.clients[index], self.round, self.state(index))
        except Exception as error:
            error.add_note(f"in round {self.round} of {self.clients[index].name}")
            raise
