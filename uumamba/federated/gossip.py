"""Gossip steps on stacked weights, and the distance from their mean."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from uumamba.federated.mixing import Mixing, Presence
from uumamba.runtime.errors import require

BLOCK = 1 << 18
"""Weights of each client that are mixed at once, which bounds the memory for float64."""


def mix(weights: Tensor, mixing: Mixing, *, first_step: int, steps: int, present: Presence = None) -> Tensor:
    r"""Return the clients' weights after some gossip steps.

    .. math:: X \leftarrow W_{s + Q - 1} \cdots W_{s + 1} W_s X

    Sums are computed in float64 and rounded after each step, as clients that send weights of their own type do. A
    factor of float32(1/3) instead would scale the mean up by 3e-8 in each step.

    Args:
        weights: weights of shape ``(clients, size)``; not changed.
        mixing: graph or server.
        first_step: number s of the first gossip step, counted over all rounds.
        steps: number Q of gossip steps; 0 changes nothing.
        present: for each client whether it takes part; None for all.

    Raises:
        UsageError: the number of rows differs from the number of clients.

    Example:
        >>> from uumamba.federated import full
        >>> mix(torch.tensor([[1.0], [3.0]]), full(2), first_step=0, steps=1)
        tensor([[2.],
                [2.]])
    """
    require(
        weights.ndim == 2 and weights.shape[0] == mixing.clients,
        "weights",
        got=f"shape {tuple(weights.shape)}",
        expected=f"{mixing.clients} rows, one per client of {mixing.name}",
    )
    for step in range(first_step, first_step + steps):
        matrix = mixing.matrix(step, present)
        mixed = torch.empty_like(weights)
        for start in range(0, weights.shape[1], BLOCK):
            block = weights[:, start : start + BLOCK].double().numpy()
            mixed[:, start : start + BLOCK] = torch.from_numpy(matrix @ block)
        weights = mixed
    return weights


def mix_one(
    vectors: Mapping[int, Tensor], mixing: Mixing, *, client: int, step: int, present: Presence = None
) -> Tensor:
    """Return one client's weights after a gossip step: its row of :func:`mix`.

    Args:
        vectors: weights by client, with at least those that the client's row of the matrix names.
        mixing: graph or server.
        client: number of the client.
        step: number of the gossip step, counted over all rounds.
        present: for each client whether it takes part; None for all.

    Example:
        >>> from uumamba.federated import full
        >>> mix_one({0: torch.tensor([1.0]), 1: torch.tensor([3.0])}, full(2), client=0, step=0)
        tensor([2.])
    """
    row = mixing.matrix(step, present)[[client]].tocoo()
    total = torch.zeros_like(vectors[client], dtype=torch.float64)
    for other, share in zip(row.coords[1].tolist(), row.data.tolist(), strict=True):
        total += share * vectors[other].double()
    return total.to(vectors[client].dtype)


def senders(mixing: Mixing, client: int, step: int, present: Presence = None) -> list[int]:
    """Return the clients from which a client receives in a gossip step.

    Example:
        >>> from uumamba.federated import ring
        >>> senders(ring(5), client=0, step=0)
        [1, 4]
    """
    return [int(other) for other in mixing.matrix(step, present)[[client]].tocoo().coords[1] if other != client]


def receivers(mixing: Mixing, client: int, step: int, present: Presence = None) -> list[int]:
    """Return the clients to which a client sends in a gossip step.

    Example:
        >>> from uumamba.federated import exponential
        >>> receivers(exponential(8), client=0, step=0)
        [4, 6, 7]
    """
    return [int(other) for other in mixing.matrix(step, present)[:, [client]].tocoo().coords[0] if other != client]


def mean_weights(weights: Tensor) -> Tensor:
    """Return the mean over clients, summed in float64.

    Args:
        weights: ``(clients, parameters)``.

    Example:
        >>> mean_weights(torch.tensor([[0.0, 2.0], [1.0, 4.0]]))
        tensor([0.5000, 3.0000])
    """
    return weights.mean(dim=0, dtype=torch.float64).to(weights.dtype)


def consensus_distance(weights: Tensor) -> float:
    r"""Return the root mean square distance from the clients' mean.

    .. math:: \sqrt{\frac{1}{n} \sum_i \lVert x_i - \bar x \rVert_2^2}

    Args:
        weights: weights of shape ``(clients, size)``.

    Example:
        >>> consensus_distance(torch.tensor([[1.0], [3.0]]))
        1.0
    """
    total = 0.0
    for start in range(0, weights.shape[1], BLOCK):
        block = weights[:, start : start + BLOCK].double()
        total += float(((block - block.mean(dim=0)) ** 2).sum())
    return float(np.sqrt(total / weights.shape[0]))
