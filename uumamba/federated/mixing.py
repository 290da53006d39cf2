"""Mixing of clients' weights after local training: interface, server and none."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from uumamba.runtime.errors import require
from uumamba.runtime.options import PositiveInt, check_options

if TYPE_CHECKING:
    from scipy import sparse  # loads in half a second, at the first matrix

Presence = Sequence[bool] | np.ndarray | None
"""For each client whether it takes part; None for all."""


def to_sparse(matrix: Any, **options: Any) -> "sparse.csr_array":
    """Return a compressed sparse matrix; options are those of ``scipy.sparse.csr_array``."""
    from scipy import sparse

    return sparse.csr_array(matrix, **options)


class Mixing(Protocol):
    """Matrix by which clients' weights are multiplied in each gossip step.

    Attributes:
        name: for tables and plots.
        clients: number of clients.
        is_symmetric: whether clients may be absent.
    """

    name: str
    clients: int
    is_symmetric: bool

    def matrix(self, step: int, present: Presence = None) -> "sparse.csr_array":
        """Return the matrix of a gossip step; every row sums to 1."""
        ...

    def count_messages(self, step: int, present: Presence = None) -> int:
        """Return the number of weight vectors sent in a gossip step."""
        ...

    def describe(self, gossip_steps: int = 1) -> str:
        """Return a line with the graph's size and messages."""
        messages = self.count_messages(0) / self.clients
        return f"{self.name}, {self.clients} clients, {messages:.3g} messages per client and step"


class Server(Mixing):
    r"""Server that sends the mean of the present clients' weights to all.

    This is federated averaging (FedAvg),

    .. math:: x_i \leftarrow \frac{\sum_{j \in S} m_j x_j}{\sum_{j \in S} m_j}

    with S the present clients and m their numbers of samples. An absent client receives the mean when it next takes
    part, which is the same as receiving it at once. Each present client sends and receives one weight vector a round.

    Args:
        sizes: number of samples of each client; the same number for equal shares.

    Raises:
        UsageError: there is no client, or a size is not positive.

    Example:
        >>> Server([1, 3]).matrix(0).toarray()
        array([[0.25, 0.75],
               [0.25, 0.75]])

    References:
        McMahan et al., *Communication-Efficient Learning of Deep Networks from Decentralized Data*, AISTATS 2017,
        arXiv:1602.05629.
    """

    @check_options
    def __init__(self, sizes: Sequence[PositiveInt]) -> None:
        require(len(sizes) > 0, "sizes", got="no client", expected="a number of samples for each client")
        self.name, self.clients, self.is_symmetric = "server", len(sizes), True
        self._sizes = np.asarray(sizes, dtype=np.float64)

    def matrix(self, step: int, present: Presence = None) -> "sparse.csr_array":
        """Return the matrix whose rows all have the present clients' shares."""
        shares = self._sizes * (1.0 if present is None else np.asarray(present, dtype=np.float64))
        if not shares.any():
            return to_sparse(np.eye(self.clients))
        return to_sparse(np.tile(shares / shares.sum(), (self.clients, 1)))

    def count_messages(self, step: int, present: Presence = None) -> int:
        """Return two messages, up and down, per present client."""
        return 2 * (self.clients if present is None else int(np.count_nonzero(present)))


class Isolated(Mixing):
    """No exchange: every client trains alone.

    Args:
        clients: number of clients.

    Example:
        >>> Isolated(2).matrix(0).toarray()
        array([[1., 0.],
               [0., 1.]])
    """

    @check_options
    def __init__(self, clients: PositiveInt) -> None:
        self.name, self.clients, self.is_symmetric = "isolated", clients, True

    def matrix(self, step: int, present: Presence = None) -> "sparse.csr_array":
        """Return the identity."""
        return to_sparse(np.eye(self.clients))

    def count_messages(self, step: int, present: Presence = None) -> int:
        """Return 0."""
        return 0
