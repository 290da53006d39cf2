"""Decentralized training: clients exchange weights with neighbours, without a server."""

from uumamba.federated.clients import Client
from uumamba.federated.dfedsam import DFedSAM
from uumamba.federated.flat_weights import FlatWeights
from uumamba.federated.gossip import consensus_distance, mean_weights, mix
from uumamba.federated.gossip_matrix import Topology
from uumamba.federated.graphs import (
    exponential,
    full,
    grid,
    metropolis,
    one_peer_exponential,
    random_regular,
    ring,
    torus,
)
from uumamba.federated.label_skew import dirichlet_split
from uumamba.federated.local_training import ClientState, LocalResult, LocalTraining
from uumamba.federated.mixing import Isolated, Mixing, Server
from uumamba.federated.norm_statistics import recompute_statistics
from uumamba.federated.nvflare_jobs import make_nvflare_job, run_nvflare_simulator
from uumamba.federated.processes import connect_site, join_as_client
from uumamba.federated.simulation import RoundRecord, Scores, Simulation
from uumamba.federated.site_rounds import Links, Site, SiteRecord, SiteSummary, check_same
from uumamba.federated.site_setup import SiteError, SiteSetup

__all__ = [
    "Client",
    "ClientState",
    "DFedSAM",
    "FlatWeights",
    "Isolated",
    "Links",
    "LocalResult",
    "LocalTraining",
    "Mixing",
    "RoundRecord",
    "Scores",
    "Server",
    "Simulation",
    "Site",
    "SiteError",
    "SiteRecord",
    "SiteSetup",
    "SiteSummary",
    "Topology",
    "check_same",
    "connect_site",
    "consensus_distance",
    "dirichlet_split",
    "exponential",
    "full",
    "grid",
    "join_as_client",
    "make_nvflare_job",
    "mean_weights",
    "metropolis",
    "mix",
    "one_peer_exponential",
    "random_regular",
    "recompute_statistics",
    "ring",
    "run_nvflare_simulator",
    "torus",
]


def __dir__() -> list[str]:
    return __all__
