"""Tests of decentralized rounds against centralised, local and hand-written training."""

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn
from torch.utils.data import TensorDataset

from uumamba.federated import (
    Client,
    ClientState,
    DFedSAM,
    FlatWeights,
    Isolated,
    LocalTraining,
    Server,
    Simulation,
    exponential,
    full,
    one_peer_exponential,
    recompute_statistics,
    ring,
)
from uumamba.optim import ASAM, SAM, Plain
from uumamba.runtime.errors import UsageError
from uumamba.runtime.tree import flatten, unflatten

SGD = partial(torch.optim.SGD, lr=0.1)
PLAIN, SAM_SGD = partial(Plain, base=SGD), partial(SAM, base=SGD, rho=0.1)
MOMENTUM = partial(Plain, base=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01))


def make_net(*, norm: bool = False, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(3)
    middle = [nn.BatchNorm1d(8)] if norm else []
    return nn.Sequential(nn.Linear(6, 8), *middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4))


def make_clients(count: int, *, samples: int = 12, batch_size: int = 12) -> list[Client]:
    generator = torch.Generator().manual_seed(7)
    return [
        Client.from_tensors(
            f"site {index}",
            torch.randn(samples, 6, generator=generator),
            torch.randint(4, (samples,), generator=generator),
            batch_size=batch_size,
        )
        for index in range(count)
    ]


def objective(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(net(batch[0]), batch[1])


def simulate(topology: Any, *, rounds: int = 3, optimizer: Any = PLAIN, net: Any = None, **options: Any) -> Simulation:
    clients = options.pop("clients", None) or make_clients(topology.clients)
    simulation = Simulation(net or make_net(), clients, DFedSAM(objective, optimizer, topology, **options))
    for _ in simulation.run(rounds):
        pass
    return simulation


def test_one_step_on_a_complete_graph_equals_centralised_sgd() -> None:
    clients = make_clients(5)
    simulation = simulate(full(5), rounds=4, optimizer=partial(SAM, base=SGD, rho=0.0), local_steps=1, clients=clients)
    net = make_net()
    optimizer = SGD(net.parameters())
    for number in range(4):
        optimizer.zero_grad()
        batches = [next(iter(client.batches(number))) for client in clients]
        objective(net, tuple(map(torch.cat, zip(*batches, strict=True)))).backward()
        optimizer.step()
    expected = FlatWeights(net).read()
    for row in simulation.weights:
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", [PLAIN, SAM_SGD, partial(ASAM, base=SGD, rho=0.5)])
def test_one_client_equals_local_training_bit_for_bit(optimizer: Any) -> None:
    [client] = make_clients(1, batch_size=5)
    simulation = simulate(ring(1), rounds=3, optimizer=optimizer, local_steps=4, clients=[client], gossip_steps=2)
    net = make_net()
    local = optimizer(net.parameters())
    for number in range(3):
        for _, batch in zip(range(4), client.batches(number), strict=False):
            local.step(lambda batch=batch: objective(net, batch))
    assert torch.equal(simulation.weights[0], FlatWeights(net).read())


def test_dfedsam_with_several_gossip_steps_equals_its_equations() -> None:
    rho, lr, steps, gossip, clients = 0.3, 0.05, 3, 4, 6
    scale = torch.linspace(0.5, 2.0, clients * 2, dtype=torch.float64).reshape(clients, 2)
    centre = torch.linspace(-1.0, 3.0, clients * 2, dtype=torch.float64).reshape(clients, 2)

    class Point(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def loss(net: Point, batch: tuple[Tensor, Tensor]) -> Tensor:
        return 0.5 * (batch[0][0] * (net.place - batch[1][0]) ** 2).sum()

    sites = [Client.from_tensors(str(i), scale[i : i + 1], centre[i : i + 1]) for i in range(clients)]
    optimizer = partial(SAM, base=partial(torch.optim.SGD, lr=lr), rho=rho)
    method = DFedSAM(loss, optimizer, ring(clients), local_steps=steps, gossip_steps=gossip)
    simulation = Simulation(Point(), sites, method)
    list(simulation.run(5))

    a, c, x = scale.numpy(), centre.numpy(), np.zeros((clients, 2))
    ring_weights = sum(np.roll(np.eye(clients), shift, axis=1) for shift in (-1, 0, 1)) / 3
    for _ in range(5):
        for _ in range(steps):
            gradient = a * (x - c)
            norm = np.linalg.norm(gradient, axis=1, keepdims=True)
            x = x - lr * a * (x + rho * gradient / norm - c)
        x = np.linalg.matrix_power(ring_weights, gossip) @ x
    np.testing.assert_allclose(simulation.weights.numpy(), x, rtol=1e-12)


def test_a_schedule_goes_on_from_round_to_round() -> None:
    clients, schedule = make_clients(4), one_peer_exponential(4)
    method = DFedSAM(objective, PLAIN, schedule, gossip_steps=1)
    simulation = Simulation(make_net(), clients, method)
    training = LocalTraining(make_net(), method)
    states = [training.initial_state() for _ in clients]
    for number in range(3):
        trained = [training.run(*each) for each in zip(clients, [number] * 4, states, strict=True)]
        mixed = schedule.matrix(number % 2).toarray() @ torch.stack([each.state.weights for each in trained]).numpy()
        states = [ClientState(torch.from_numpy(row).float()) for row in mixed]
        simulation.run_round()
        torch.testing.assert_close(simulation.weights, torch.from_numpy(mixed).float())


def test_fedavg_equals_the_mean_by_size_of_locally_trained_models() -> None:
    clients = [*make_clients(2), *make_clients(3, samples=36)[2:]]
    averaged = simulate(Server([client.size for client in clients]), rounds=1, clients=clients)
    alone = simulate(Isolated(3), rounds=1, clients=clients)
    expected = (12 * alone.weights[0] + 12 * alone.weights[1] + 36 * alone.weights[2]) / 60
    for row in averaged.weights:
        torch.testing.assert_close(row, expected, rtol=1e-6, atol=1e-7)


def test_rounds_are_the_same_after_a_stop() -> None:
    options: dict[str, Any] = {
        "topology": ring(5),
        "optimizer": MOMENTUM,
        "keep_momentum": True,
        "participation": 0.6,
        "lr_factor": lambda number: 0.9**number,
    }
    whole = simulate(**options, rounds=6, net=make_net(norm=True, dropout=0.3))
    first = simulate(**options, rounds=3, net=make_net(norm=True, dropout=0.3))
    stored = unflatten(*flatten(first.state_dict()))
    second = simulate(**options, rounds=0, net=make_net(norm=True, dropout=0.3))
    torch.manual_seed(99)
    second.load_state_dict(stored)
    list(second.run(3))
    assert torch.equal(second.weights, whole.weights)
    for index in range(5):
        for name, buffer in whole.state(index).buffers.items():
            assert torch.equal(second.state(index).buffers[name], buffer)


def test_a_stored_state_of_other_clients_is_refused() -> None:
    simulation = simulate(ring(3), rounds=0)
    state = simulation.state_dict()
    with pytest.raises(UsageError, match=r"clients: got .*'other'"):
        simulation.load_state_dict(state | {"clients": ["site 0", "site 1", "other"]})
    with pytest.raises(UsageError, match=r"site 0: got weights of shape \(5,\)"):
        simulation.load_state_dict(state | {"weights": torch.zeros(3, 5)})


def test_a_client_does_not_depend_on_the_clients_before_it() -> None:
    net = make_net(norm=True, dropout=0.5)
    training = LocalTraining(net, DFedSAM(objective, SAM_SGD, Isolated(3)))
    start, clients = training.initial_state(), make_clients(3)
    alone = training.run(clients[2], 1, start).state
    training.run(clients[0], 1, start)
    torch.rand(7)
    again = training.run(clients[2], 1, start).state
    assert torch.equal(alone.weights, again.weights)
    assert all(torch.equal(alone.buffers[name], buffer) for name, buffer in again.buffers.items())


def test_momentum_starts_at_zero_each_round_unless_kept() -> None:
    [client] = make_clients(1, batch_size=4)
    reset = simulate(ring(1), rounds=3, optimizer=MOMENTUM, local_steps=2, clients=[client])
    kept = simulate(ring(1), rounds=3, optimizer=MOMENTUM, local_steps=2, clients=[client], keep_momentum=True)
    for simulation, rebuilds in ((reset, True), (kept, False)):
        net = make_net()
        local = MOMENTUM(net.parameters())
        for number in range(3):
            if rebuilds:
                local = MOMENTUM(net.parameters())
            for _, batch in zip(range(2), client.batches(number), strict=False):
                local.step(partial(objective, net, batch))
        assert torch.equal(simulation.weights[0], FlatWeights(net).read())


def test_learning_rate_factor_of_the_round_applies_also_with_kept_momentum() -> None:
    [client] = make_clients(1)
    for keep in (False, True):
        still = simulate(
            ring(1),
            optimizer=MOMENTUM,
            clients=[client],
            keep_momentum=keep,
            rounds=3,
            lr_factor=lambda number: 1.0 if number == 0 else 0.0,
        )
        first = simulate(ring(1), optimizer=MOMENTUM, clients=[client], keep_momentum=keep, rounds=1)
        assert torch.equal(still.weights, first.weights)


def test_absent_clients_keep_their_weights_and_do_not_train() -> None:
    method = DFedSAM(objective, PLAIN, ring(6), participation=0.5, seed=4)
    simulation = Simulation(make_net(), make_clients(6), method)
    before = simulation.weights.clone()
    record = simulation.run_round()
    present = method.draw_present(0)
    assert record.present == present.sum() == 3
    assert torch.equal(simulation.weights[~present], before[~present])
    assert set(record.skipped_steps) == {f"site {index}" for index in np.flatnonzero(present)}
    assert {tuple(method.draw_present(number)) for number in range(20)} != {tuple(present)}


def test_traffic_counts_every_vector_that_is_sent() -> None:
    size = FlatWeights(make_net()).size
    for mixing, steps, vectors in (
        (ring(6), 1, 12),
        (ring(6), 4, 48),
        (exponential(8), 2, 48),
        (Server([1] * 6), 1, 12),
    ):
        simulation = Simulation(
            make_net(), make_clients(mixing.clients), DFedSAM(objective, PLAIN, mixing, gossip_steps=steps)
        )
        assert simulation.run_round().sent_bytes == vectors * size * 4


def poison(clients: list[Client], index: int) -> list[Client]:
    x, y = torch.full((12, 6), float("nan")), torch.zeros(12, dtype=torch.long)
    return [*clients[:index], Client.from_tensors(f"site {index}", x, y), *clients[index + 1 :]]


class Unchecked(Plain):
    """Optimizer that updates also with a gradient that is not finite."""

    def _update(self, params: Any) -> None:
        self.base.step()


@pytest.mark.parametrize("topology", ["ring", 8, ring])
def test_what_is_no_graph_is_refused(topology: Any, refused: Any) -> None:
    with refused("topology"):
        DFedSAM(objective, SAM_SGD, topology)


def test_other_objects_than_functions_and_clients_are_refused(refused: Any) -> None:
    net, samples = make_net(), torch.randn(12, 6)
    with refused("optimizer", got="SAM"):
        Simulation(net, make_clients(4), DFedSAM(objective, SAM_SGD(net.parameters()), ring(4)))
    with refused("objective"):
        Simulation(net, make_clients(4), DFedSAM(samples, SAM_SGD, ring(4)))
    for make in (lambda: Client.from_tensors(samples, samples), lambda: Client.from_dataset(samples, samples)):
        with refused("name"):
            make()
    with refused("batches", got="list"):
        Client("A", [samples])
    with refused("clients", got="TensorDataset"):
        Simulation(net, [TensorDataset(samples)] * 4, DFedSAM(objective, SAM_SGD, ring(4)))


def test_a_site_with_weights_that_are_not_finite_is_isolated_by_name() -> None:
    clients = poison(make_clients(5), 2)
    simulation = Simulation(make_net(), clients, DFedSAM(objective, partial(Unchecked, base=SGD), ring(5)))
    before = simulation.weights[2].clone()
    with pytest.warns(UserWarning, match="site 2: weights or statistics are not finite after round 0; isolated"):
        record = simulation.run_round()
    assert record.isolated == ("site 2",)
    assert record.present == 4
    assert np.isfinite(record.loss)
    assert torch.isfinite(simulation.weights).all()
    assert torch.equal(simulation.weights[2], before)


def test_a_site_whose_running_statistics_are_not_finite_is_isolated_by_name() -> None:
    """A step without a finite gradient is skipped, so the weights alone would not tell."""
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    clients = [Client.from_tensors(f"site {index}", torch.randn(12, 6), torch.arange(12) % 3) for index in range(4)]
    clients[2] = Client.from_tensors("site 2", torch.full((12, 6), float("nan")), torch.arange(12) % 3)
    simulation = Simulation(net, clients, DFedSAM(objective, SAM_SGD, ring(4)))
    with pytest.warns(UserWarning, match="site 2: weights or statistics are not finite"):
        record = simulation.run_round()
    assert record.isolated == ("site 2",)
    assert all(each.isfinite().all() for index in range(4) for each in simulation.state(index).buffers.values())
    assert all(each.isfinite().all() for each in simulation.consensus_model().buffers())


def test_a_site_that_is_not_finite_on_a_directed_graph_ends_the_round_and_loses_nothing() -> None:
    clients = poison(make_clients(4), 1)
    method = DFedSAM(objective, partial(Unchecked, base=SGD), exponential(4))
    simulation = Simulation(make_net(), clients, method)
    before = simulation.weights.clone()
    with pytest.raises(UsageError, match=r"site 1: got weights or statistics .* not finite.*exponential is directed"):
        simulation.run_round()
    assert simulation.round == 0
    assert torch.equal(simulation.weights, before)


def test_skipped_steps_are_counted_by_site() -> None:
    simulation = Simulation(make_net(), poison(make_clients(3), 1), DFedSAM(objective, SAM_SGD, ring(3)))
    record = simulation.run_round()
    assert record.skipped_steps == {"site 0": 0, "site 1": 5, "site 2": 0}
    assert torch.isfinite(simulation.weights).all()


def test_an_error_in_a_site_names_it_and_leaves_the_round_undone() -> None:
    x, labels = torch.randn(12, 6), torch.full((12,), 9)  # a class that the network does not have
    clients = [*make_clients(2), Client.from_tensors("Utrecht", x, labels)]
    simulation = Simulation(make_net(), clients, DFedSAM(objective, PLAIN, ring(3)))
    before = simulation.weights.clone()
    with pytest.raises(Exception, match=r"out of bounds") as caught:
        simulation.run_round()
    assert "in round 0 of Utrecht" in caught.value.__notes__
    assert torch.equal(simulation.weights, before)


def test_torch_optimizers_are_refused_with_the_line_to_write() -> None:
    simulation = Simulation(make_net(), make_clients(3), DFedSAM(objective, SGD, ring(3)))
    with pytest.raises(UsageError, match=r"optimizer: got SGD.*partial\(Plain, base=partial\(SGD"):
        simulation.run_round()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"local_steps": 0}, "local_steps: got 0"),
        ({"gossip_steps": -1}, "gossip_steps: got -1"),
        ({"participation": 0.0}, "participation: got 0.0"),
        ({"participation": 1.5}, "participation: got 1.5"),
        ({"topology": exponential(8), "participation": 0.5}, "participation: got 0.5 on exponential.*directed"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        DFedSAM(objective, PLAIN, **({"topology": ring(8)} | options))


def test_wrong_clients_are_refused() -> None:
    method = DFedSAM(objective, PLAIN, ring(3))
    with pytest.raises(UsageError, match="got 2 clients, expected 3, the clients of ring"):
        Simulation(make_net(), make_clients(2), method)
    with pytest.raises(UsageError, match=r"site 0.*twice"):
        Simulation(make_net(), [*make_clients(2), *make_clients(1)], method)
    with pytest.raises(UsageError, match=r"empty: got tensors of lengths \[0\]"):
        Client.from_tensors("empty", torch.zeros(0, 2))
    with pytest.raises(UsageError, match=r"uneven: got tensors of lengths \[2, 3\]"):
        Client.from_tensors("uneven", torch.zeros(2), torch.zeros(3))
    short = Client("short", lambda number: [(torch.zeros(2, 6), torch.zeros(2, dtype=torch.long))] * 2)
    with pytest.raises(UsageError, match="short: got 2 batches in round 0, expected at least 5"):
        Simulation(make_net(), [*make_clients(2), short], method).run_round()


def test_frozen_weights_are_not_exchanged_and_mixed_types_are_kept() -> None:
    net = make_net()
    net[0].requires_grad_(False)
    net[3].double()
    flat = FlatWeights(net)
    assert flat.names == ["3.weight", "3.bias"]
    assert (flat.size, flat.dtype) == (36, torch.float64)
    vector = torch.arange(36, dtype=torch.float64)
    flat.write(vector)
    assert torch.equal(flat.read(), vector)
    with pytest.raises(UsageError, match=r"site B: got weights of shape \(35,\), expected shape \(36,\)"):
        flat.write(vector[1:], source="site B")
    with pytest.raises(UsageError, match="no trainable parameter"):
        FlatWeights(nn.Tanh())


def test_statistics_of_averaged_weights_are_recomputed_as_torch_does() -> None:
    net, batches = make_net(norm=True), [torch.randn(10, 6) for _ in range(4)]
    other = copy.deepcopy(net).eval()
    update_bn(batches, net)
    recompute_statistics(other, batches)
    assert not other.training
    torch.testing.assert_close(other[1].running_mean, net[1].running_mean)
    torch.testing.assert_close(other[1].running_var, net[1].running_var)
    assert other[1].momentum == 0.1
    kept = other[1].running_mean.clone()
    with pytest.raises(UsageError, match="no batch"):
        recompute_statistics(other, [])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        recompute_statistics(other, [batches[1], torch.zeros(2, 5)])
    assert torch.equal(other[1].running_mean, kept)
    assert other[1].momentum == 0.1


def test_three_kinds_of_models_are_scored_on_the_same_data() -> None:
    simulation = simulate(ring(4), net=make_net(norm=True), rounds=2)
    x, y = torch.randn(40, 6), torch.randint(4, (40,))

    def accuracy(net: nn.Module) -> float:
        assert not net.training
        return float((net(x).argmax(dim=1) == y).float().mean())

    scores = simulation.score(accuracy)
    assert list(scores.by_client) == [f"site {index}" for index in range(4)]
    assert scores.worst == min(scores.by_client.values())
    assert scores.mean == pytest.approx(sum(scores.by_client.values()) / 4)
    consensus = simulation.consensus_model()
    torch.testing.assert_close(FlatWeights(consensus).read(), simulation.weights.double().mean(dim=0).float())
    assert scores.consensus == accuracy(consensus.eval())


def test_scoring_changes_no_later_round() -> None:
    scored = simulate(ring(4), net=make_net(norm=True, dropout=0.2), rounds=1)
    scored.score(lambda net: 0.0)
    list(scored.run(1))
    assert torch.equal(scored.weights, simulate(ring(4), net=make_net(norm=True, dropout=0.2), rounds=2).weights)


def test_datasets_and_tensors_give_batches_keyed_by_round() -> None:
    x = torch.arange(10.0)
    for client in (
        Client.from_tensors("A", x, batch_size=4, seed=1),
        Client.from_dataset("A", torch.utils.data.TensorDataset(x), batch_size=4, seed=1),
    ):
        first, again, other = (
            [next_batch[0] for _, next_batch in zip(range(6), client.batches(number), strict=False)]
            for number in (0, 0, 1)
        )
        assert [len(batch) for batch in first] == [4, 4, 2, 4, 4, 2]
        assert all(map(torch.equal, first, again))
        assert not all(map(torch.equal, first, other))
        assert sorted(torch.cat(first[:3]).tolist()) == sorted(torch.cat(first[3:]).tolist()) == x.tolist()
        assert client.size == 10
