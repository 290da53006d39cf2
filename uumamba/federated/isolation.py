"""Isolation of clients whose model is not finite."""

import warnings
from collections.abc import Sequence

from uumamba.federated.mixing import Mixing
from uumamba.runtime.errors import UsageError


def check_may_isolate(names: Sequence[str], mixing: Mixing, round_number: int) -> None:
    """Warn of isolated clients, or raise on a directed graph.

    Args:
        names: clients whose weights or statistics are not finite; without any nothing happens.
        mixing: the graph.
        round_number: number of the round.

    Raises:
        UsageError: the graph is directed, so it needs every client; the key is the clients.
    """
    if not names:
        return
    if not mixing.is_symmetric:
        raise UsageError(
            ", ".join(names),
            got=f"weights or statistics that are not finite after round {round_number}",
            expected=f"finite weights, since {mixing.name} is directed and needs every client",
            fix="lower the learning rate, check this client's data, or choose an undirected graph",
        )
    warnings.warn(
        f"{', '.join(names)}: weights or statistics are not finite after round {round_number}; isolated for this round",
        stacklevel=4,
    )
