"""Decentralized federated training with a sharpness-aware optimizer."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from uumamba.federated.mixing import Mixing
from uumamba.runtime.errors import require
from uumamba.runtime.options import ABOVE_0, AT_MOST_1, EXPLAINED, NonNegativeInt, PositiveInt, check_options
from uumamba.runtime.seeds import generator_for
from uumamba.runtime.whole_step import WholeStepOptimizer

Share = Annotated[float, ABOVE_0, AT_MOST_1]


@check_options
@dataclass(frozen=True)
class DFedSAM:
    r"""Decentralized rounds: K local steps of any optimizer, then Q gossip steps.

    In round t each client i starts from its own weights, takes K steps on its own data, and mixes with its neighbours:

    .. math:: z_i^t = \mathrm{optimizer}^K(x_i^t; F_i), \qquad
              x_i^{t+1} = \sum_j \big(W^Q\big)_{ij} z_j^t

    With SAM a local step is :math:`z \leftarrow z - \eta \nabla F_i(z + \rho\, g / \lVert g \rVert)`. No client
    sends data, and there is no server. Which published method this is depends on the arguments:

    ===============  ============  ===========  =================  ============
    method           optimizer     local_steps  topology           gossip_steps
    ===============  ============  ===========  =================  ============
    DFedSAM          SAM           K            any Topology       1
    DFedSAM-MGS      SAM           K            any Topology       Q > 1
    D-PSGD           Plain         1            any Topology       1
    DFedAvg          Plain         K            any Topology       1
    DFedAvgM         Plain (SGD    K            any Topology       1
                     with
                     momentum)
    FedAvg           Plain         K            Server             1
    FedSAM           SAM           K            Server             1
    local training   any           K            Isolated           any
    ===============  ============  ===========  =================  ============

    The optimizer is built for each client and round, so its momentum starts at 0, unless ``keep_momentum`` is set.
    Weight decay acts in the base optimizer. Running statistics are each client's own and never mixed; see
    :func:`recompute_statistics`.

    Args:
        objective: ``objective(net, batch)`` returns the scalar loss.
        optimizer: callable from parameters to an optimizer with ``step(closure)``, such as
            ``partial(SAM, base=partial(torch.optim.SGD, lr=0.1), rho=0.05)``.
        topology: a :class:`Topology`, :class:`Server` or :class:`Isolated`.
        local_steps: steps K of each client in a round.
        gossip_steps: gossip steps Q after them. Traffic is proportional to Q.
        participation: share of clients that take part in a round, drawn for each; others keep their weights.
        keep_momentum: whether the optimizer's state is carried to the client's next round.
        lr_factor: factor of every learning rate as a function of the round, such as ``lambda t: 0.998**t``.
        ascent: scalar of the objective's outputs that replaces the loss in the ascent step, as in ``optimizer.step``.
        seed: seed of participation, dropout and other draws of the network.

    Raises:
        UsageError: an option is out of its range, or clients may be absent on a directed graph.

    Example:
        >>> from functools import partial
        >>> from uumamba.federated import ring
        >>> from uumamba.optim import SAM
        >>> optimizer = partial(SAM, base=partial(torch.optim.SGD, lr=0.1), rho=0.05)
        >>> method = DFedSAM(lambda net, batch: net(batch).mean(), optimizer, ring(16), local_steps=5, gossip_steps=4)
        >>> method.topology.describe(method.gossip_steps)
        'ring, 16 clients, 2 messages per client and step, spectral gap 0.0507, lambda^4 0.812'

    References:
        Shi et al., *Improving the Model Consistency of Decentralized Federated Learning*, ICML 2023,
        arXiv:2302.04083.
        Sun et al., *Decentralized Federated Averaging*, 2021, arXiv:2104.11375 (DFedAvgM).
        Lian et al., *Can Decentralized Algorithms Outperform Centralized Algorithms?*, NeurIPS 2017,
        arXiv:1705.09056 (D-PSGD).
        Differs from the papers: D-PSGD mixes after the step and not before. Gossip matrices are fixed before the run
        and doubly stochastic; public code redraws neighbours by client, which loses the mean. A client's K batches
        follow each other in one random order per epoch.
    """

    objective: Annotated[Callable[[nn.Module, Any], Tensor], EXPLAINED]
    optimizer: Annotated[Callable[[Iterable[nn.Parameter]], WholeStepOptimizer], EXPLAINED]
    topology: Mixing
    local_steps: PositiveInt = 5
    gossip_steps: NonNegativeInt = 1
    participation: Share = 1.0
    keep_momentum: bool = False
    lr_factor: Callable[[int], float] | None = None
    ascent: Callable[[Any], Tensor] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        is_mixing = not isinstance(self.topology, type) and hasattr(self.topology, "is_symmetric")
        require(
            is_mixing,
            "topology",
            got=self.topology if isinstance(self.topology, str | int) else type(self.topology).__name__,
            expected="a graph, Server or Isolated",
            fix="write ring(16) for 16 clients, or another graph of uumamba.federated",
        )
        require(
            self.participation == 1 or self.topology.is_symmetric,
            "participation",
            got=f"{self.participation} on {self.topology.name}",
            expected="1, since the graph is directed",
            fix="choose an undirected graph, such as ring, torus or random_regular",
        )

    def draw_present(self, round_number: int) -> np.ndarray:
        """Draw the clients that take part in a round.

        Returns:
            A boolean array of shape ``(clients,)``, with at least one True.
        """
        clients = self.topology.clients
        present = np.zeros(clients, dtype=bool)
        generator = generator_for(self.seed, "participation", round_number)
        count = max(1, math.floor(self.participation * clients + 0.5))
        present[torch.randperm(clients, generator=generator)[:count].numpy()] = True
        return present

    def first_gossip_step(self, round_number: int) -> int:
        """Return the number of a round's first gossip step since round 0."""
        return round_number * self.gossip_steps
