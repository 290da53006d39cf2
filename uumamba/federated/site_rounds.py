"""Rounds of one client that exchanges messages with its neighbours."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from uumamba.federated.clients import Client
from uumamba.federated.dfedsam import DFedSAM
from uumamba.federated.gossip import mix_one, receivers, senders
from uumamba.federated.gossip_matrix import Topology
from uumamba.federated.isolation import check_may_isolate
from uumamba.federated.local_training import ClientState, LocalTraining
from uumamba.federated.mixing import Mixing, Server
from uumamba.runtime.errors import require
from uumamba.runtime.options import check_options
from uumamba.runtime.seeds import key_to_seed

SAME_START = 1e-3
"""Largest difference of two clients' sums of starting weights, relative to the norm of the weights."""


class Links(Protocol):
    """Connections of one client to its neighbours.

    Attributes:
        index: row of this client in the gossip matrix.
        names: names of all clients, in order of rows.
    """

    index: int
    names: Sequence[str]

    def swap(
        self, message: Tensor, *, tag: int, receivers: Sequence[int], senders: Sequence[int]
    ) -> Mapping[int, Tensor]:
        """Send a vector to some clients and return the vectors of others.

        Args:
            message: vector on the CPU; every client's has the same type and length.
            tag: number of the exchange since round 0, the same at both ends.
            receivers: rows of the clients that get the vector.
            senders: rows of the clients whose vectors of the same tag are returned.
        """
        ...


@dataclass(frozen=True)
class SiteRecord:
    """Record of one client's round.

    Attributes:
        round: number of the round, from 0.
        loss: mean loss of the local steps; NaN for a client that did not take part.
        sent_bytes: bytes of weights that the client sent.
        is_present: whether the client took part.
        isolated: names of the client and its neighbours that were not finite; treated as absent.
        skipped_steps: local steps without an update, as a gradient was not finite.
    """

    round: int
    loss: float
    sent_bytes: int
    is_present: bool
    isolated: tuple[str, ...] = ()
    skipped_steps: int = 0


@dataclass(frozen=True)
class SiteSummary:
    """Facts that must be the same at all clients.

    Attributes:
        name: name of the client.
        size: number of trainable weights.
        network: hash of the weights' names, shapes and type.
        method: hash of the method's numbers and the gossip matrices.
        weight_sum: sum of the starting weights.
        weight_norm: norm of the starting weights.
    """

    name: str
    size: int
    network: int
    method: int
    weight_sum: float
    weight_norm: float


@check_options
def check_same(summaries: Sequence[SiteSummary]) -> None:
    """Raise if clients have different networks, methods or starting weights.

    Starting weights may differ by rounding.

    Args:
        summaries: one of each client, in order of rows.

    Raises:
        UsageError: the key is the first client that differs from the client of row 0.

    Example:
        >>> check_same([SiteSummary("A", 9, 1, 1, 0.5, 2.0), SiteSummary("B", 8, 2, 1, 0.5, 2.0)])
        Traceback (most recent call last):
        uumamba.runtime.errors.UsageError: B: got a network of 8 trainable weights, expected the network of A, of 9 \
trainable weights. Fix: build the same network at every client.
    """
    first = summaries[0]
    for other in summaries[1:]:
        require(
            (other.size, other.network) == (first.size, first.network),
            other.name,
            got=f"a network of {other.size} trainable weights",
            expected=f"the network of {first.name}, of {first.size} trainable weights",
            fix="build the same network at every client",
        )
        require(
            other.method == first.method,
            other.name,
            got="another method or topology",
            expected=f"numbers of steps, participation, seed and gossip matrices as at {first.name}",
            fix="build the same DFedSAM at every client",
        )
        require(
            abs(other.weight_sum - first.weight_sum) <= SAME_START * first.weight_norm,
            other.name,
            got=f"starting weights with the sum {other.weight_sum:.6g}",
            expected=f"{first.weight_sum:.6g}, as at {first.name}",
            fix="seed every client equally before the network is built, or load the same weights",
        )


class Site:
    """One client of decentralized training that knows its own data only.

    Its rounds compute the row of this client in :class:`Simulation`: local steps, then gossip steps with the neighbours
    of the gossip matrix. Weights go to neighbours only. A number before them says whether they are finite; a client
    whose weights are not is isolated for the round, as in the simulation. After an error the client has its weights
    from before the round.

    Args:
        net: the network, with the same starting weights at all clients.
        client: the client's name and batches.
        method: local training and gossip, the same at all clients.
        links: connections to the neighbours.

    Raises:
        UsageError: the topology has another number of clients, or the method needs a server.
    """

    @check_options
    def __init__(self, net: nn.Module, client: Client, method: DFedSAM, links: Links) -> None:
        require(
            not isinstance(method.topology, Server),
            "topology",
            got="a server",
            expected="a topology, since clients exchange with neighbours only",
            fix="use full(clients), whose gossip step is the mean of all clients",
        )
        require(
            len(links.names) == method.topology.clients,
            "clients",
            got=f"{len(links.names)} clients",
            expected=f"{method.topology.clients}, the clients of {method.topology.name}",
        )
        self.net, self.client, self.method, self.links = net, client, method, links
        self.round = 0
        self._training = LocalTraining(net, method)
        self.state = self._training.initial_state()
        """The client's weights, buffers and kept optimizer state."""

    def summarize(self) -> SiteSummary:
        """Return what all clients must have in common, before the first round."""
        flat, method, weights = self._training.flat, self.method, self.state.weights.double()
        return SiteSummary(
            self.client.name,
            size=flat.size,
            network=key_to_seed(repr((flat.names, flat.shapes, str(flat.dtype)))),
            method=key_to_seed(
                repr((method.local_steps, method.gossip_steps, method.participation, method.keep_momentum)),
                method.seed,
                *_list_links(method.topology),
            ),
            weight_sum=float(weights.sum()),
            weight_norm=float(weights.norm()),
        )

    def run(self, rounds: int) -> Iterator[SiteRecord]:
        """Run rounds and yield a record after each."""
        for _ in range(rounds):
            yield self.run_round()

    def run_round(self) -> SiteRecord:
        """Take a round's local steps and exchange weights with the neighbours.

        Raises:
            UsageError: a neighbour sends another shape, or this client's weights or statistics are not
                finite on a directed graph.
        """
        number, index = self.round, self.links.index
        present = self.method.draw_present(number)
        if not present[index]:
            self.round += 1
            return SiteRecord(number, float("nan"), sent_bytes=0, is_present=False)
        try:
            result = self._training.run(self.client, number, self.state)
        except Exception as error:
            error.add_note(f"in round {number} of {self.client.name}")
            raise
        if not result.is_finite:
            check_may_isolate([self.client.name], self.method.topology, number)
        failed = self._find_isolated(present, is_finite=result.is_finite)
        present[failed] = False
        sent_bytes = 0
        if result.is_finite:
            weights, sent_bytes = self._gossip(result.state.weights, present)
            self.state = ClientState(weights, result.state.buffers, result.state.optimizer)
        self.round += 1
        return SiteRecord(
            number,
            result.loss,
            sent_bytes,
            is_present=result.is_finite,
            isolated=tuple(self.links.names[each] for each in failed),
            skipped_steps=result.skipped_steps,
        )

    def model(self) -> nn.Module:
        """Return a copy of the network with this client's weights.

        Running statistics are recomputed on some of its batches.
        """
        return copy.deepcopy(self._training.load_model(self.state, [self.client], self.round))

    def state_dict(self) -> dict[str, Any]:
        """Return the client's state as a tree of tensors and plain values."""
        return {
            "round": self.round,
            "client": self.client.name,
            "weights": self.state.weights.clone(),
            "buffers": dict(self.state.buffers),
            "optimizer": dict(self.state.optimizer),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a stored state, as if there had been no stop.

        All clients must continue from the same round.

        Raises:
            UsageError: the state is another client's, or its weights have another shape.
        """
        name = self.client.name
        require(state["client"] == name, "client", got=state["client"], expected=f"{name}, as before the stop")
        self._training.flat.check(state["weights"], source=name)
        self.round = state["round"]
        self.state = ClientState(state["weights"].clone(), dict(state["buffers"]), dict(state["optimizer"]))

    def _find_isolated(self, present: np.ndarray, *, is_finite: bool) -> list[int]:
        """Return the rows of the clients that are not finite.

        They are this client or neighbours of this round's gossip steps.
        """
        mixing, index, steps = self.method.topology, self.links.index, self._gossip_steps()
        to = {each for step in steps for each in receivers(mixing, index, step, present)}
        come_from = {each for step in steps for each in senders(mixing, index, step, present)}
        own = torch.tensor([float(is_finite)])
        tag = self.round * (self.method.gossip_steps + 1)
        reports = self.links.swap(own, tag=tag, receivers=sorted(to), senders=sorted(come_from))
        return [each for each, report in sorted({**reports, index: own}.items()) if not report.item()]

    def _gossip(self, weights: Tensor, present: np.ndarray) -> tuple[Tensor, int]:
        """Return the weights after the gossip steps, and the bytes sent."""
        mixing, index, sent_bytes = self.method.topology, self.links.index, 0
        for count, step in enumerate(self._gossip_steps()):
            to, come_from = receivers(mixing, index, step, present), senders(mixing, index, step, present)
            tag = self.round * (self.method.gossip_steps + 1) + 1 + count
            found = self.links.swap(weights, tag=tag, receivers=to, senders=come_from)
            for other, vector in found.items():
                self._training.flat.check(vector, source=self.links.names[other])
            sent_bytes += len(to) * weights.numel() * weights.element_size()
            weights = mix_one({**found, index: weights}, mixing, client=index, step=step, present=present)
        return weights, sent_bytes

    def _gossip_steps(self) -> range:
        first = self.method.first_gossip_step(self.round)
        return range(first, first + self.method.gossip_steps)


def _list_links(mixing: Mixing) -> list[str]:
    """Describe every gossip matrix of one period by its entries."""
    matrices = [mixing.matrix(step) for step in range(mixing.period if isinstance(mixing, Topology) else 1)]
    return [repr((each.indptr.tolist(), each.indices.tolist(), each.data.round(9).tolist())) for each in matrices]
