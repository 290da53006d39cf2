"""Gossip matrices of a graph of clients."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from uumamba.federated.mixing import Presence, to_sparse
from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.options import check_options

if TYPE_CHECKING:
    from scipy import sparse

TOLERANCE = 1e-9
"""Largest difference from 1 of a row's or column's sum."""


class Topology:
    r"""Doubly stochastic gossip matrix of a graph, or a periodic schedule.

    In one gossip step client i replaces its weights by a mean over its neighbours and itself,

    .. math:: x_i \leftarrow \sum_j W_{ij} x_j, \qquad W \mathbf 1 = \mathbf 1, \quad \mathbf 1^T W = \mathbf 1^T ,

    so the mean over clients stays and the distance from it is multiplied by at most

    .. math:: \lambda = \Big\lVert W_{p} \cdots W_1 - \tfrac 1 n \mathbf 1 \mathbf 1^T \Big\rVert_2^{1/p}

    per step, with p the period. For a symmetric W, lambda is max(abs(lambda_2), abs(lambda_n)), for a normal one
    abs(lambda_2). Gossip step number s, counted over all rounds, uses matrix s modulo p.

    Edge cases. A single client has the matrix [[1]]; lambda is 0. A schedule of one-peer exchanges may reach the exact
    mean after one period; lambda is 0 then. Sums may differ from 1 by 1e-9: give float64.

    Args:
        name: name for tables and plots.
        matrices: the matrices of one period, each of shape ``(clients, clients)``, dense or sparse; one matrix for a
            fixed graph. Row i has the weights with which client i receives.

    Raises:
        UsageError: a matrix is not square, has a negative entry, is not doubly stochastic or of another size than the
            first; the graph over one period is not connected; or the steps never reach agreement, as for a matrix that
            only permutes clients.

    Example:
        >>> pair = Topology("pair", [[[0.5, 0.5], [0.5, 0.5]]])
        >>> pair.clients, pair.spectral_gap
        (2, 1.0)
    """

    @check_options
    def __init__(self, name: str, matrices: Sequence[Any]) -> None:
        require(len(matrices) > 0, name, got="no matrix", expected="at least one gossip matrix")
        self.name = name
        self._matrices = tuple(_read_matrix(name, matrix) for matrix in matrices)
        self.clients = int(self._matrices[0].shape[0])
        self.period = len(self._matrices)
        for matrix in self._matrices:
            _check_doubly_stochastic(name, matrix, self.clients)
        self.is_symmetric = all(abs(each - each.T).max() <= TOLERANCE for each in self._matrices)
        _check_connected(name, self._matrices)
        self.contraction = self._find_contraction()

    def _find_contraction(self) -> float:
        product = np.eye(self.clients)
        for matrix in self._matrices:
            product = matrix @ product
        deviation = product - 1 / self.clients
        norm = float(np.linalg.norm(deviation, 2))
        swaps = norm >= 1 - 1e-12 and np.abs(np.linalg.eigvals(deviation)).max() >= 1 - 1e-12
        require(
            not swaps,
            self.name,
            got="clients that swap their weights without end",
            expected="a matrix whose powers converge to the mean",
            fix="give every client a weight of its own above 0",
        )
        return 0.0 if norm < 1e-12 else min(1.0, norm) ** (1 / self.period)

    @property
    def spectral_gap(self) -> float:
        """Spectral gap 1 - lambda, 1 for a complete graph."""
        return 1 - self.contraction

    def matrix(self, step: int, present: Presence = None) -> "sparse.csr_array":
        """Return the matrix of a gossip step.

        An absent client keeps its weights, and its share goes back to each neighbour's own weight. The matrix stays
        symmetric and doubly stochastic.

        Args:
            step: number of the gossip step, counted over all rounds from 0.
            present: for each client whether it takes part; None for all.

        Raises:
            UsageError: a client is absent and the matrix is not symmetric. Its columns would no longer sum to 1, and
                the mean would be lost.
        """
        matrix = self._matrices[step % self.period]
        if present is None or all(present):
            return matrix
        require(
            self.is_symmetric,
            "participation",
            got=f"absent clients {[index for index, here in enumerate(present) if not here]} on {self.name}",
            expected="every client, since the graph is directed",
            fix="choose an undirected graph, such as ring, torus or random_regular",
        )
        from scipy import sparse

        here = sparse.diags_array(np.asarray(present, dtype=float))
        links = here @ (matrix - sparse.diags_array(matrix.diagonal())) @ here
        own = 1 - np.asarray(links.sum(axis=1)).ravel()
        return _sorted_rows(links + sparse.diags_array(own))

    def count_messages(self, step: int, present: Presence = None) -> int:
        """Return the number of weight vectors sent in a gossip step."""
        matrix = self.matrix(step, present)
        return int(matrix.nnz - np.count_nonzero(matrix.diagonal()))

    def describe(self, gossip_steps: int = 1) -> str:
        """Return a line with the graph's size, spectral gap and contraction.

        Example:
            >>> from uumamba.federated import ring
            >>> ring(16).describe(gossip_steps=4)
            'ring, 16 clients, 2 messages per client and step, spectral gap 0.0507, lambda^4 0.812'
        """
        messages = sum(self.count_messages(step) for step in range(self.period)) / self.period / self.clients
        contraction = "" if gossip_steps < 1 else f", lambda^{gossip_steps} {self.contraction**gossip_steps:.3f}"
        return (
            f"{self.name}, {self.clients} clients, {messages:.3g} messages per client and step, "
            f"spectral gap {self.spectral_gap:.4f}{contraction}"
        )


def _read_matrix(name: str, matrix: Any) -> "sparse.csr_array":
    try:
        found = to_sparse(matrix, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(name, got=f"no matrix ({error})", expected="a square matrix of numbers") from None
    require(
        found.ndim == 2 and found.shape[0] == found.shape[1] > 0,
        name,
        got=f"a matrix of shape {found.shape}",
        expected="a square matrix, one row per client",
    )
    return _sorted_rows(found)


def _sorted_rows(matrix: Any) -> "sparse.csr_array":
    """Return the matrix with columns in order and without stored zeros."""
    found = to_sparse(matrix)
    found.sum_duplicates()
    found.eliminate_zeros()
    return found


def _check_doubly_stochastic(name: str, matrix: "sparse.csr_array", clients: int) -> None:
    require(
        matrix.shape[0] == clients,
        name,
        got=f"matrices of {clients} and {matrix.shape[0]} clients",
        expected="matrices of one size",
    )
    require(
        np.isfinite(matrix.data).all() and (matrix.data >= 0).all(),
        name,
        got="an entry that is negative or not finite",
        expected="weights of at least 0",
    )
    for axis, words in ((1, "row"), (0, "column")):
        sums = np.asarray(matrix.sum(axis=axis)).ravel()
        worst = int(np.argmax(np.abs(sums - 1)))
        require(
            abs(sums[worst] - 1) <= TOLERANCE,
            name,
            got=f"{words} {worst} with the sum {sums[worst]:.9g}",
            expected="a doubly stochastic matrix: every row and column sums to 1",
            fix="use Metropolis weights: metropolis(adjacency)",
        )


def _check_connected(name: str, matrices: "Sequence[sparse.csr_array]") -> None:
    """Raise unless the links of one period join all clients.

    For doubly stochastic matrices a path in one direction implies one in the other.
    """
    from scipy.sparse.csgraph import connected_components

    groups, group_of = connected_components(sum(matrices[1:], start=matrices[0]), directed=True, connection="weak")
    require(
        groups == 1,
        name,
        got=f"{groups} groups without a link, the first of clients {np.flatnonzero(group_of == group_of[0]).tolist()}",
        expected="a graph connected over one period",
        fix="add an edge",
    )
