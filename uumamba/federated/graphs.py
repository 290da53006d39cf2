"""Graphs of clients for decentralized training."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch

from uumamba.federated.gossip_matrix import Topology
from uumamba.federated.mixing import to_sparse
from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.options import AT_LEAST_1, PositiveInt, check_options
from uumamba.runtime.seeds import generator_for

if TYPE_CHECKING:
    from scipy import sparse

Degree = Annotated[int, AT_LEAST_1]
ATTEMPTS = 1000
"""Random graphs that are drawn until one is connected."""


def metropolis(adjacency: Any) -> np.ndarray:
    r"""Return the Metropolis-Hastings weights of an undirected graph.

    .. math:: W_{ij} = \frac{1}{1 + \max(d_i, d_j)} \text{ for neighbours}, \qquad W_{ii} = 1 - \sum_{j \ne i} W_{ij}

    with d the number of neighbours. They are symmetric and doubly stochastic for every graph.

    Args:
        adjacency: matrix of shape ``(clients, clients)``; entries that are not 0 are links. The diagonal is ignored.

    Raises:
        UsageError: the matrix is not square or not symmetric.

    Example:
        >>> metropolis([[0, 1, 0], [1, 0, 1], [0, 1, 0]]).round(3)  # a path of three clients
        array([[0.667, 0.333, 0.   ],
               [0.333, 0.333, 0.333],
               [0.   , 0.333, 0.667]])
    """
    linked = np.asarray(adjacency) != 0
    is_square = linked.ndim == 2 and linked.shape[0] == linked.shape[1]
    require(
        is_square and bool((linked == linked.T).all()),
        "adjacency",
        got=f"a matrix of shape {linked.shape}{' that is not symmetric' if is_square else ''}",
        expected="a square symmetric matrix, since links are undirected",
    )
    linked = linked & ~np.eye(len(linked), dtype=bool)
    degrees = linked.sum(axis=1)
    weights = linked / (1.0 + np.maximum.outer(degrees, degrees))
    return weights + np.diag(1 - weights.sum(axis=1))


@check_options
def ring(clients: PositiveInt) -> Topology:
    """Return a ring: each client has two neighbours.

    Args:
        clients: number of clients.

    Example:
        >>> ring(4).matrix(0).toarray()[0].round(3)
        array([0.333, 0.333, 0.   , 0.333])
    """
    return _undirected("ring", clients, ((i, (i + 1) % clients) for i in range(clients)))


@check_options
def grid(clients: PositiveInt) -> Topology:
    """Return the most nearly square grid.

    A prime number of clients gives a path.

    Args:
        clients: number of clients.

    Example:
        >>> round(grid(16).spectral_gap, 4)
        0.1314
    """
    columns = _find_columns(clients)
    down = ((i, i + columns) for i in range(clients - columns))
    right = ((i, i + 1) for i in range(clients) if (i + 1) % columns)
    return _undirected("grid", clients, [*down, *right])


@check_options
def torus(clients: PositiveInt) -> Topology:
    """Return the most nearly square grid with joined borders.

    A prime number of clients gives a ring.

    Args:
        clients: number of clients.

    Example:
        >>> round(torus(16).spectral_gap, 4)
        0.4
    """
    columns = _find_columns(clients)
    down = ((i, (i + columns) % clients) for i in range(clients))
    right = ((i, i - columns + 1 if (i + 1) % columns == 0 else i + 1) for i in range(clients))
    return _undirected("torus", clients, [*down, *right])


@check_options
def full(clients: PositiveInt) -> Topology:
    """Return the complete graph: each step gives every client the exact mean.

    Args:
        clients: number of clients.

    Example:
        >>> full(4).spectral_gap
        1.0
    """
    return Topology("full", [np.full((clients, clients), 1 / clients)])


@check_options
def exponential(clients: PositiveInt) -> Topology:
    r"""Return the static exponential graph, which is directed.

    Client i receives from i + 1, i + 2, i + 4, ... (modulo the number of clients) and itself, with equal weights. For
    ceil(log2 n) messages per client the spectral gap is 2 / (1 + ceil(log2 n)) for even n, much larger than a ring's.

    Args:
        clients: number of clients.

    Example:
        >>> round(exponential(16).spectral_gap, 4), round(exponential(100).spectral_gap, 4)
        (0.4, 0.25)

    References:
        Ying et al., *Exponential Graph is Provably Efficient for Decentralized Deep Training*, NeurIPS 2021,
        arXiv:2110.13363.
    """
    hops = [2**power for power in range(_count_hops(clients))]
    return Topology("exponential", [_shift_mean(clients, [0, *hops])])


@check_options
def one_peer_exponential(clients: PositiveInt) -> Topology:
    """Return the one-peer exponential schedule.

    In step s client i averages with client i + 2^s. A client sends and receives one weight vector per gossip step.
    For 2^k clients k steps give the exact mean.

    Args:
        clients: number of clients.

    Example:
        >>> schedule = one_peer_exponential(16)
        >>> schedule.period, schedule.contraction
        (4, 0.0)

    References:
        Ying et al., *Exponential Graph is Provably Efficient for Decentralized Deep Training*, NeurIPS 2021,
        arXiv:2110.13363.
    """
    hops = [2**power for power in range(_count_hops(clients))] or [0]
    return Topology("one-peer exponential", [_shift_mean(clients, [0, hop]) for hop in hops])


@check_options
def random_regular(clients: PositiveInt, degree: Degree = 4, *, seed: int = 0) -> Topology:
    """Return a random connected graph in which every client has ``degree`` neighbours.

    The graph is drawn once for a run: pairs of free links are joined in random order, and drawn again when a client
    would be joined to itself or twice to another.

    Args:
        clients: number of clients, more than ``degree``.
        degree: neighbours per client; ``clients * degree`` is even.
        seed: equal seeds give equal graphs.

    Raises:
        UsageError: no such graph exists, or a degree of 1 leaves it unconnected.

    Example:
        >>> graph = random_regular(20, 4, seed=1)
        >>> {int((row != 0).sum()) for row in graph.matrix(0).toarray()}  # four neighbours and itself
        {5}
    """
    require(
        degree < clients and clients * degree % 2 == 0 and (degree > 1 or clients == 2),
        "degree",
        got=f"{degree} for {clients} clients",
        expected="at least 2, below the number of clients, and clients * degree even",
    )
    for attempt in range(ATTEMPTS):
        links = _draw_regular(clients, degree, generator_for(seed, "random regular graph", attempt))
        if links is not None:
            try:
                return _undirected("random regular", clients, links)
            except UsageError:  # not connected
                continue
    raise UsageError("degree", got=degree, expected="a degree for which a connected graph is found", fix="raise it")


def _undirected(name: str, clients: int, links: Iterable[tuple[int, int]]) -> Topology:
    adjacency = np.zeros((clients, clients), dtype=bool)
    for one, other in links:
        adjacency[one, other] = adjacency[other, one] = True
    return Topology(name, [metropolis(adjacency)])


def _find_columns(clients: int) -> int:
    """Return the number of columns of the most nearly square grid."""
    return clients // next(side for side in range(math.isqrt(clients), 0, -1) if clients % side == 0)


def _count_hops(clients: int) -> int:
    return (clients - 1).bit_length()


def _shift_mean(clients: int, hops: Sequence[int]) -> "sparse.csr_array":
    """Return the mean over clients i + hop."""
    rows = np.repeat(np.arange(clients), len(hops))
    columns = (rows + np.tile(hops, clients)) % clients
    return to_sparse((np.full(len(rows), 1 / len(hops)), (rows, columns)), shape=(clients, clients))


def _draw_regular(clients: int, degree: int, generator: torch.Generator) -> set[tuple[int, int]] | None:
    """Draw a simple graph by joining free links.

    The result is None when the last links do not fit. Only the pairs that do not fit are drawn again, as in Steger and
    Wormald (1999); drawing all again would need exp(degree**2 / 4) attempts.
    """
    links: set[tuple[int, int]] = set()
    free = [client for client in range(clients) for _ in range(degree)]
    while free:
        order = torch.randperm(len(free), generator=generator).tolist()
        left: list[int] = []
        for one, other in zip(order[::2], order[1::2], strict=True):
            pair = (min(free[one], free[other]), max(free[one], free[other]))
            if pair[0] == pair[1] or pair in links:
                left += pair
            else:
                links.add(pair)
        if len(left) == len(free):
            return None
        free = left
    return links
