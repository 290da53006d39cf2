"""Graphs of sites and learning rates of rounds, from sections of a configuration."""

import pytest
import torch

from tests.pipelines.run_files import Refused
from uumamba.config.bind import read_part
from uumamba.config.federated import build_federated, build_lr_factor
from uumamba.config.registry import KINDS
from uumamba.config.training import TrainingConfig
from uumamba.federated import mix


@pytest.mark.parametrize("name", KINDS["topology"].parts)
def test_every_topology_is_built_for_the_number_of_sites(name: str) -> None:
    part = read_part("federated", {"topology": {"name": name}, "gossip_steps": 2})
    method = build_federated(part, [3, 1, 1, 1, 1, 1], objective=len, optimizer=len, seed=5)
    assert (method.topology.clients, method.gossip_steps, method.seed) == (6, 2, 5)
    weights = torch.tensor([[6.0], [0.0], [0.0], [0.0], [0.0], [0.0]])
    mixed = mix(weights, method.topology, first_step=0, steps=200)
    expected = {"server": [18 / 8] * 6, "isolated": weights.flatten().tolist()}.get(name, [1.0] * 6)
    torch.testing.assert_close(mixed.flatten(), torch.tensor(expected))


def test_absent_sites_on_a_directed_graph_are_refused_by_key(refused: Refused) -> None:
    part = read_part("federated", {"topology": {"name": "exponential"}, "participation": 0.5})
    with refused("federated.participation"):
        build_federated(part, [1] * 8, objective=len, optimizer=len)


def test_a_round_has_the_learning_rate_of_its_first_step() -> None:
    training = TrainingConfig(epochs=4, batches_per_epoch=6, batch_size=1, patch_size=(8, 8))
    schedule = read_part("schedule", {"name": "poly", "power": 1.0, "warmup_epochs": 1})
    factor = build_lr_factor(schedule, training=training, local_steps=3)
    rising, falling = [1 / 6, 4 / 6], [1 - step / 18 for step in range(0, 18, 3)]
    assert [factor(number) for number in range(8)] == pytest.approx([*rising, *falling])
