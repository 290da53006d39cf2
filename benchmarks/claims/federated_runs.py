"""Decentralized trainings on scikit-learn's digits, split over clients by Dirichlet shares."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.claims.class_bar import make_training_set
from benchmarks.claims.digits import CLASSES, load_test_set
from benchmarks.claims.measures import accuracy
from benchmarks.claims.run_log import Measured, Run
from uumamba.federated import (
    Client,
    DFedSAM,
    Isolated,
    Mixing,
    Scores,
    Server,
    Simulation,
    Topology,
    consensus_distance,
    dirichlet_split,
    exponential,
    mix,
    ring,
    torus,
)
from uumamba.optim import SAM, Plain
from uumamba.runtime.seeds import seed_everything

TRAINING, LEAST = 640, 2
"""Training images of all clients together, and of the smallest; the rest of the pool, 357, validates trials."""
HIDDEN, BATCH, LOCAL_STEPS, WEIGHT_DECAY, MOMENTUM = 32, 16, 5, 1e-2, 0.9
DECAY = 0.998
"""Factor of the learning rate per round, that of public code for DFedSAM."""
LAST, SCORES = 5, 10
"""The last fifth of the rounds is scored, after at most ten of them; a score is their mean."""
MEAN, WORST, CONSENSUS = "clients' mean accuracy", "worst client's accuracy", "consensus model's accuracy"
DISTANCE, SLOPE, SENT, CONTRACTION = "consensus distance", "slope", "megabytes sent", "contraction"

Numbers = tuple[float, float | None]
"""Learning rate, and rho of SAM or None."""
ONE_STEP_TRIALS: tuple[Numbers, ...] = tuple((lr, None) for lr in (0.2, 0.4, 0.8, 1.6))
PLAIN_TRIALS: tuple[Numbers, ...] = tuple((lr, None) for lr in (0.1, 0.2, 0.4, 0.8))
SAM_TRIALS: tuple[Numbers, ...] = tuple((lr, rho) for lr in (0.2, 0.4) for rho in (0.1, 0.3))
MOMENTUM_TRIALS: tuple[Numbers, ...] = tuple((lr, rho) for lr in (0.05, 0.1) for rho in (0.1, 0.3))


@dataclass(frozen=True)
class Setting:
    """Split over clients, graph and length of training.

    Attributes:
        clients: number of clients.
        alpha: concentration of the Dirichlet shares.
        topology: function from a number of clients to their graph.
        rounds: number of rounds.
    """

    clients: int
    alpha: float
    topology: Callable[[int], Topology]
    rounds: int


@dataclass(frozen=True)
class Method:
    """Decentralized method, as arguments of DFedSAM.

    Attributes:
        trials: numbers to choose from on validation images; empty for the numbers of another method.
        tuned_as: the method whose numbers are used.
        local_steps: steps of each client in a round.
        gossip_steps: gossip steps in a round.
        momentum: momentum of SGD.
        keep_momentum: whether momentum is carried to the next round.
        mixing: function from the clients' sizes to server or isolation; None uses the setting's graph.
    """

    trials: tuple[Numbers, ...] = ()
    tuned_as: str = ""
    local_steps: int = LOCAL_STEPS
    gossip_steps: int = 1
    momentum: float = 0.0
    keep_momentum: bool = False
    mixing: Callable[[Sequence[int]], Mixing] | None = None


def name_setting(clients: int, alpha: float, topology: Callable[[int], Topology]) -> str:
    """Return a setting's name.

    Example:
        >>> name_setting(16, 0.3, ring)
        '16 clients, Dirichlet 0.3, ring'
    """
    return f"{clients} clients, Dirichlet {alpha:g}, {topology.__name__}"


SETTINGS: Mapping[str, Setting] = {
    name_setting(clients, alpha, topology): Setting(clients, alpha, topology, rounds)
    for clients, alpha, topology, rounds in (
        *((16, alpha, topology, 160) for alpha in (0.3, 0.6) for topology in (ring, torus, exponential)),
        (64, 0.3, exponential, 120),
    )
}
DPSGD, DFEDAVG, DFEDSAM, TWO, FOUR = "D-PSGD", "DFedAvg", "DFedSAM", "DFedSAM-MGS, Q = 2", "DFedSAM-MGS, Q = 4"
RESET, KEPT = "DFedSAM, momentum reset", "DFedSAM, momentum kept"
FEDAVG, FEDSAM, LOCAL = "FedAvg", "FedSAM", "local training"
METHODS: Mapping[str, Method] = {
    DPSGD: Method(ONE_STEP_TRIALS, local_steps=1),
    DFEDAVG: Method(PLAIN_TRIALS),
    DFEDSAM: Method(SAM_TRIALS),
    TWO: Method(SAM_TRIALS, gossip_steps=2),
    FOUR: Method(SAM_TRIALS, gossip_steps=4),
    RESET: Method(MOMENTUM_TRIALS, momentum=MOMENTUM),
    KEPT: Method(MOMENTUM_TRIALS, momentum=MOMENTUM, keep_momentum=True),
    FEDAVG: Method(tuned_as=DFEDAVG, mixing=Server),
    FEDSAM: Method(tuned_as=DFEDSAM, mixing=Server),
    LOCAL: Method(tuned_as=DFEDAVG, mixing=lambda sizes: Isolated(len(sizes))),
}


@dataclass(frozen=True)
class Images:
    """Flat images ``(n, 64)`` from 0 to 1 with labels."""

    images: Tensor
    labels: Tensor


def perform(run: Run) -> Measured:
    """Train and measure one run, independent of process and time.

    ``run.steps`` is the number of rounds. Trials are scored on validation images, other runs on the test set.
    """
    training, scored_on = draw_images(run.seed, validate=run.measures == "validation")
    simulation = build_simulation(run, training)
    at = list_scored_rounds(run.steps)
    found: list[tuple[Scores, float]] = []
    sent = 0
    for record in simulation.run(run.steps):
        sent += record.sent_bytes
        if record.round + 1 in at:
            scores = simulation.score(lambda net: accuracy(net, scored_on.images, scored_on.labels))
            found.append((scores, record.consensus_distance))
    return {
        MEAN: fmean(scores.mean for scores, _ in found),
        WORST: fmean(scores.worst for scores, _ in found),
        CONSENSUS: fmean(scores.consensus for scores, _ in found),
        DISTANCE: fmean(distance for _, distance in found),
        SLOPE: compute_slope(at, [scores.mean for scores, _ in found]) * math.ceil(run.steps / LAST),
        SENT: sent / 1e6,
        CONTRACTION: measure_contraction(simulation),
    }


def list_scored_rounds(rounds: int) -> list[int]:
    """List the rounds, counted from 1, after which models are scored.

    Example:
        >>> list_scored_rounds(200)
        [164, 168, 172, 176, 180, 184, 188, 192, 196, 200]
    """
    last = math.ceil(rounds / LAST)
    count = min(SCORES, last)
    return [rounds - last + round(last * (index + 1) / count) for index in range(count)]


def compute_slope(places: Sequence[float], values: Sequence[float]) -> float:
    """Return the least-squares slope, 0 for a single value.

    Example:
        >>> round(compute_slope([10, 20, 30], [0.5, 0.6, 0.7]), 6)
        0.01
    """
    return float(np.polyfit(places, values, 1)[0]) if len(places) > 1 else 0.0


def draw_images(seed: int, *, validate: bool) -> tuple[Images, Images]:
    """Return training images of all clients, and images for scores.

    The seed draws the former. The latter are the test set, or the seed's validation images.
    """
    pool = make_training_set(seed, bar=False)
    if validate:
        scored_on = Images(pool.images[TRAINING:], pool.labels[TRAINING:])
    else:
        images, labels = load_test_set()
        scored_on = Images(images.flatten(1), labels)
    return Images(pool.images[:TRAINING], pool.labels[:TRAINING]), scored_on


def draw_clients(setting: str, seed: int, training: Images) -> list[Client]:
    """Split the images over clients with batches keyed by the seed."""
    spec = SETTINGS[setting]
    parts = dirichlet_split(training.labels, spec.clients, spec.alpha, seed, at_least=LEAST)
    return [
        Client.from_tensors(
            f"client {index}", training.images[part], training.labels[part], batch_size=BATCH, seed=seed
        )
        for index, part in enumerate(map(torch.from_numpy, parts))
    ]


def build_simulation(run: Run, training: Images) -> Simulation:
    """Build the clients, the network and the method of a run."""
    spec, method = SETTINGS[run.setting], METHODS[run.method]
    clients = draw_clients(run.setting, run.seed, training)
    mixing = method.mixing([client.size for client in clients]) if method.mixing else spec.topology(spec.clients)
    base = partial(torch.optim.SGD, lr=run.lr, momentum=method.momentum, weight_decay=WEIGHT_DECAY)
    decentralized = DFedSAM(
        compute_loss,
        partial(Plain, base=base) if run.value is None else partial(SAM, base=base, rho=run.value),
        mixing,
        local_steps=method.local_steps,
        gossip_steps=method.gossip_steps,
        keep_momentum=method.keep_momentum,
        lr_factor=lambda number: DECAY**number,
        seed=run.seed,
    )
    seed_everything(run.seed)
    net = nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    return Simulation(net, clients, decentralized)


def measure_contraction(simulation: Simulation) -> float:
    """Measure by which factor a round's gossip steps shrink the consensus distance.

    The weights are those after the local steps of one more round. The simulation keeps its state.
    """
    method = simulation.method
    local = Simulation(simulation.net, simulation.clients, replace(method, gossip_steps=0))
    local.load_state_dict(simulation.state_dict())
    before = local.run_round().consensus_distance
    first = method.first_gossip_step(simulation.round)
    mixed = mix(local.weights, method.topology, first_step=first, steps=method.gossip_steps)
    return consensus_distance(mixed) / before


def compute_loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean cross entropy of a batch of images and labels."""
    return F.cross_entropy(net(batch[0]), batch[1])
