"""Local steps of one client in a round."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from uumamba.federated.clients import Client
from uumamba.federated.dfedsam import DFedSAM
from uumamba.federated.flat_weights import FlatWeights
from uumamba.federated.norm_statistics import recompute_statistics
from uumamba.runtime.errors import require
from uumamba.runtime.options import check_options
from uumamba.runtime.seeds import key_to_seed, preserve_random_state, seed_everything
from uumamba.runtime.whole_step import WholeStepOptimizer, check_whole_step

STATISTICS_BATCHES = 10
"""Batches of each client for running statistics before a model is scored."""


@dataclass(frozen=True)
class ClientState:
    """State of one client between rounds.

    Attributes:
        weights: trainable weights of shape ``(size,)``.
        buffers: the network's buffers by name, such as running statistics.
        optimizer: the optimizer's state when momentum is kept, otherwise empty.
    """

    weights: Tensor
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LocalResult:
    """Result of a client's local steps.

    Attributes:
        state: the client's state after the last step, before any exchange.
        loss: mean loss of the steps.
        skipped_steps: steps that the optimizer skipped because a gradient was not finite.
    """

    state: ClientState
    loss: float
    skipped_steps: int

    @property
    def is_finite(self) -> bool:
        """Absence of NaN and infinity in weights and buffers.

        A skipped step leaves the weights as they were, but its forward pass has entered the running statistics.
        """
        return all(bool(each.isfinite().all()) for each in (self.state.weights, *self.state.buffers.values()))


_FUNCTIONS = {
    "objective": "write lambda net, batch: loss_fn(net(batch[0]), batch[1])",
    "optimizer": "write partial(SAM, base=partial(torch.optim.SGD, lr=0.1), rho=0.05), which every client calls",
}


class LocalTraining:
    """Local steps with one network object, which plays every client in turn.

    The result depends on the client, the round and the weights alone, never on the clients before it: weights, buffers
    and random numbers are set before the first step. So a simulation, real processes and real sites compute the same.

    Args:
        net: the network; its weights are overwritten.
        method: objective, optimizer and numbers of steps.

    Example:
        >>> from uumamba.federated import Isolated
        >>> from uumamba.optim import Plain
        >>> net, x = nn.Linear(1, 1, bias=False), torch.ones(4, 1)
        >>> method = DFedSAM(
        ...     lambda net, batch: net(batch[0]).mean(),
        ...     partial(Plain, base=partial(torch.optim.SGD, lr=0.5)),
        ...     Isolated(1),
        ...     local_steps=2,
        ... )
        >>> training = LocalTraining(net, method)
        >>> state = ClientState(torch.tensor([3.0]))
        >>> training.run(Client.from_tensors("A", x), 0, state).state.weights  # 3 - 2 * 0.5
        tensor([2.])
    """

    @check_options
    def __init__(self, net: nn.Module, method: DFedSAM) -> None:
        for name, fix in _FUNCTIONS.items():
            given = getattr(method, name)
            require(callable(given), name, got=type(given).__name__, expected="a function", fix=fix)
        self.net, self.method, self.flat = net, method, FlatWeights(net)

    def initial_state(self) -> ClientState:
        """Return the network's weights and buffers as a client's state."""
        return ClientState(self.flat.read(), self._read_buffers())

    def load(self, state: ClientState, *, source: str = "weights") -> nn.Module:
        """Copy a client's weights and buffers into the network and return it."""
        self.flat.write(state.weights, source=source)
        with torch.no_grad():
            for name, buffer in self.net.named_buffers():
                if name in state.buffers:
                    buffer.copy_(state.buffers[name])
        return self.net

    def load_model(self, state: ClientState, clients: Sequence[Client], round_number: int) -> nn.Module:
        """Copy weights into the network, recompute its statistics and return it.

        Running statistics are means over some batches of a round of each client. A batch that is not finite does not
        count; without another one the statistics are those of the state.
        """
        self.load(state)
        of_clients = (islice(client.batches(round_number), STATISTICS_BATCHES) for client in clients)
        batches = filter(_is_finite, chain.from_iterable(of_clients))
        first = next(batches, None)
        if first is not None:
            recompute_statistics(self.net, chain([first], batches), self.method.objective)
        return self.net

    def run(self, client: Client, round_number: int, state: ClientState) -> LocalResult:
        """Take a client's local steps of a round.

        Raises:
            UsageError: the client has fewer batches than local steps, or its weights have another shape.
        """
        method = self.method
        self.load(state, source=client.name)
        self.net.train()
        optimizer = self._make_optimizer(round_number, state)
        device = next(self.net.parameters()).device
        losses = torch.zeros(method.local_steps, dtype=torch.float64)
        with preserve_random_state([device]):
            seed_everything(key_to_seed(method.seed, "local training", client.name, round_number))
            for step, batch in enumerate(self._take_batches(client, round_number)):
                losses[step] = optimizer.step(partial(method.objective, self.net, batch), ascent=method.ascent)
        kept = optimizer.state_dict() if method.keep_momentum else {}
        return LocalResult(
            ClientState(self.flat.read(), self._read_buffers(), kept),
            loss=float(losses.mean()),
            skipped_steps=optimizer.skipped_steps,
        )

    def _make_optimizer(self, round_number: int, state: ClientState) -> WholeStepOptimizer:
        method = self.method
        optimizer = method.optimizer([param for param in self.net.parameters() if param.requires_grad])
        check_whole_step(optimizer)
        if state.optimizer:
            rates = [group["lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(dict(state.optimizer))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate  # of the new optimizer: the stored one has an earlier round's factor
        if method.lr_factor is not None:
            for group in optimizer.param_groups:
                group["lr"] *= method.lr_factor(round_number)
        return optimizer

    def _take_batches(self, client: Client, round_number: int) -> Iterator[Any]:
        count = 0
        for batch in islice(client.batches(round_number), self.method.local_steps):
            count += 1
            yield batch
        require(
            count == self.method.local_steps,
            client.name,
            got=f"{count} batches in round {round_number}",
            expected=f"at least {self.method.local_steps}, the number of local steps",
            fix="repeat the client's batches without end, or lower local_steps",
        )

    def _read_buffers(self) -> dict[str, Tensor]:
        return {name: buffer.detach().cpu().clone() for name, buffer in self.net.named_buffers()}


def _is_finite(batch: Any) -> bool:
    """Return whether no tensor of a batch has NaN or infinity."""
    if isinstance(batch, Tensor):
        return bool(batch.isfinite().all())
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return all(map(_is_finite, parts))
