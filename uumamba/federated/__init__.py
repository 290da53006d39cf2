"""Decentralized training: clients exchange weights with neighbours, without a server."""

from uumamba.federated.clients import Client
from uumamba.federated.dfedsam import DFedSAM
from uumamba.federated.flat_weights import FlatWeights
from uumamba.federated.gossip import consensus_distance, mean_weights, mix
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
from uumamba.federated.simulation import RoundRecord, Scores, Simulation
from uumamba.federated.topology import Topology

__all__ = [
    "Client",
    "ClientState",
    "DFedSAM",
    "FlatWeights",
    "Isolated",
    "LocalResult",
    "LocalTraining",
    "Mixing",
    "RoundRecord",
    "Scores",
    "Server",
    "Simulation",
    "Topology",
    "consensus_distance",
    "dirichlet_split",
    "exponential",
    "full",
    "grid",
    "mean_weights",
    "metropolis",
    "mix",
    "one_peer_exponential",
    "random_regular",
    "recompute_statistics",
    "ring",
    "torus",
]
