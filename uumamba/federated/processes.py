"""Decentralized training with one process per client over torch.distributed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

import torch
import torch.distributed as dist
from torch import Tensor, nn

from uumamba.federated.clients import Client, check_names
from uumamba.federated.dfedsam import DFedSAM
from uumamba.federated.site_rounds import Site, SiteSummary, check_same
from uumamba.runtime.errors import require
from uumamba.runtime.options import check_options
from uumamba.runtime.rank_group import join_group
from uumamba.runtime.rank_watch import SILENCE_S
from uumamba.runtime.ranks import Place, Ranks


@check_options
@contextmanager
def join_as_client(
    net: nn.Module,
    make_client: Callable[[int], Client],
    method: DFedSAM,
    *,
    device: str = "cpu",
    silence_s: float = SILENCE_S,
) -> Iterator[Site]:
    """Join the other clients' processes for the duration of the block.

    The process of rank i is client i of the gossip matrix. It sends its weights to its neighbours alone, point to point
    over gloo. Weights after each round equal the client's row in :class:`Simulation` with the same seeds, except for
    rounding of other numbers of threads or devices.

    All processes leave the block together. The error of one, also that of a killed process, ends the others within a
    minute; see :func:`uumamba.runtime.rank_group.join_group`.

    Args:
        net: the network on its device, with the same starting weights in all processes.
        make_client: returns the client of a rank, with its own data; called once.
        method: local training and gossip, the same in all processes.
        device: device of this process.
        silence_s: time without a heartbeat after which a process is lost.

    Raises:
        UsageError: there are fewer or more processes than clients, two clients have one name, or networks, methods or
            starting weights differ; the key is the client.
        EndedWithAnother: another process failed and reports the reason.
        RankLostError: another process disappeared.

    Example:
        Each hospital's process trains on its own scans (``torchrun --nproc-per-node 4 train.py``)::

            torch.manual_seed(0)
            net = UNet(...)
            method = DFedSAM(objective, optimizer, ring(4), local_steps=5, gossip_steps=2)
            with join_as_client(net, lambda rank: Client.from_dataset(SITES[rank], load(SITES[rank])), method) as site:
                for record in site.run(rounds=100):
                    print(record)
                torch.save(site.model().state_dict(), f"{site.client.name}.pt")
    """
    place = Place.from_environment()
    require(
        place.count == method.topology.clients,
        "processes",
        got=place.count,
        expected=f"{method.topology.clients}, the clients of {method.topology.name}",
        fix=f"start with torchrun --nproc-per-node {method.topology.clients}",
    )
    with join_group(device, place, silence_s=silence_s) as ranks:
        yield connect_site(net, make_client(ranks.rank), method, ranks)


@check_options
def connect_site(net: nn.Module, client: Client, method: DFedSAM, ranks: Ranks) -> Site:
    """Return the client of this process in a joined group.

    All processes call it together, once for each method to run. See :func:`join_as_client`.

    Args:
        net: the network on its device, with the same starting weights in all processes.
        client: the client of this process, with its own data.
        method: local training and gossip, the same in all processes.
        ranks: the group that this process has joined.

    Raises:
        UsageError: two clients have one name, or networks, methods or starting weights differ; the key is the client.
    """
    names = ranks.gather(client.name)
    check_names(names)
    site = Site(net, client, method, ProcessLinks(ranks.rank, names))
    check_same([SiteSummary(**each) for each in ranks.gather(asdict(site.summarize()))])
    return site


class ProcessLinks:
    """Point-to-point messages between the processes of a group.

    Args:
        index: rank of this process.
        names: names of all clients, in order of ranks.
    """

    def __init__(self, index: int, names: Sequence[str]) -> None:
        self.index, self.names = index, names

    def swap(self, message: Tensor, *, tag: int, receivers: Sequence[int], senders: Sequence[int]) -> dict[int, Tensor]:
        """Send a vector to some clients and return the vectors of others."""
        found = {sender: torch.empty_like(message) for sender in senders}
        works: list[tuple[int, dist.Work | None]] = []
        for receiver in receivers:
            with self._noting(receiver):
                works.append((receiver, dist.isend(message.contiguous(), receiver, tag=tag)))
        for sender in senders:
            with self._noting(sender):
                works.append((sender, dist.irecv(found[sender], sender, tag=tag)))
        for peer, work in works:
            with self._noting(peer):
                if work is not None:
                    work.wait()
        return found

    @contextmanager
    def _noting(self, peer: int) -> Iterator[None]:
        """Name the other client in an error of the connection."""
        try:
            yield
        except RuntimeError as error:
            error.add_note(f"connected to {self.names[peer]}")
            raise
