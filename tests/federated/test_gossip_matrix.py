"""Tests of graphs of clients, their gossip matrices and gossip steps."""

import numpy as np
import pytest
import torch

from uumamba.federated import (
    Isolated,
    Server,
    Topology,
    consensus_distance,
    exponential,
    full,
    grid,
    mean_weights,
    metropolis,
    mix,
    one_peer_exponential,
    random_regular,
    ring,
    torus,
)
from uumamba.federated.gossip import mix_one, receivers, senders
from uumamba.runtime.errors import UsageError

GRAPHS = {
    "ring": ring,
    "grid": grid,
    "torus": torus,
    "exponential": exponential,
    "one-peer exponential": one_peer_exponential,
    "random regular": random_regular,
    "full": full,
}
UNDIRECTED = ("ring", "grid", "torus", "random regular", "full")


@pytest.mark.parametrize(
    ("make", "clients", "gap"),
    [  # computed independently, see the methods' notes
        (ring, 16, 0.0507),
        (grid, 16, 0.1314),
        (torus, 16, 0.4000),
        (exponential, 16, 0.4000),
        (full, 16, 1.0),
        (ring, 100, 0.0013),
        (grid, 100, 0.0205),
        (torus, 100, 0.0764),
        (exponential, 100, 0.2500),
        (full, 100, 1.0),
    ],
)
def test_spectral_gaps_equal_the_published_table(make, clients: int, gap: float) -> None:
    assert make(clients).spectral_gap == pytest.approx(gap, abs=5e-5)


def test_gap_of_a_ring_follows_from_its_eigenvalues() -> None:
    for clients in (3, 5, 16, 33):
        eigenvalues = [(1 + 2 * np.cos(2 * np.pi * k / clients)) / 3 for k in range(1, clients)]
        assert ring(clients).contraction == pytest.approx(max(map(abs, eigenvalues)), abs=1e-12)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("clients", [6, 16, 25, 64])
def test_gossip_preserves_the_mean_and_contracts_by_lambda(name: str, clients: int) -> None:
    graph = GRAPHS[name](clients)
    weights = torch.randn(clients, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for steps in (graph.period, 2 * graph.period, 4 * graph.period):
        mixed = mix(weights, graph, first_step=0, steps=steps)
        torch.testing.assert_close(mixed.mean(dim=0), weights.mean(dim=0), rtol=0, atol=1e-13)
        bound = graph.contraction**steps * consensus_distance(weights)
        assert consensus_distance(mixed) <= bound * (1 + 1e-12) + 1e-13


@pytest.mark.parametrize("name", GRAPHS)
def test_several_gossip_steps_equal_the_power_of_the_matrix(name: str) -> None:
    graph = GRAPHS[name](16)
    weights = torch.randn(16, 7, dtype=torch.float64)
    expected = weights.numpy()
    for step in range(3, 8):
        expected = graph.matrix(step % graph.period).toarray() @ expected
    np.testing.assert_allclose(mix(weights, graph, first_step=3, steps=5).numpy(), expected, atol=1e-13)


def test_float32_weights_keep_their_mean_over_thousands_of_steps() -> None:
    weights = 100 + torch.randn(9, 3)
    mixed = mix(weights, ring(9), first_step=0, steps=4000)
    torch.testing.assert_close(mean_weights(mixed), mean_weights(weights), rtol=1e-6, atol=0)


def test_one_peer_schedule_reaches_the_exact_mean_in_one_period() -> None:
    graph = one_peer_exponential(32)
    weights = torch.randn(32, 4, dtype=torch.float64)
    assert graph.period == 5
    assert graph.count_messages(0) == 32
    assert consensus_distance(mix(weights, graph, first_step=0, steps=5)) < 1e-14
    assert consensus_distance(mix(weights, graph, first_step=2, steps=5)) < 1e-14


@pytest.mark.parametrize("name", GRAPHS)
def test_a_row_of_the_gossip_step_is_what_one_client_computes(name: str) -> None:
    graph, weights = GRAPHS[name](12), torch.randn(12, 5)
    for step in range(graph.period):
        mixed = mix(weights, graph, first_step=step, steps=1)
        for client in range(12):
            needed = [client, *senders(graph, client, step)]
            row = mix_one({other: weights[other] for other in needed}, graph, client=client, step=step)
            torch.testing.assert_close(row, mixed[client], rtol=1e-6, atol=1e-7)
            assert all(client in receivers(graph, other, step) for other in senders(graph, client, step))


@pytest.mark.parametrize("name", UNDIRECTED)
def test_absent_clients_keep_their_weights_and_the_mean_stays(name: str) -> None:
    graph, weights = GRAPHS[name](16), torch.randn(16, 6, dtype=torch.float64)
    present = np.ones(16, dtype=bool)
    present[[2, 3, 11]] = False
    mixed = mix(weights, graph, first_step=0, steps=3, present=present)
    assert torch.equal(mixed[~present], weights[~present])
    torch.testing.assert_close(mixed.mean(dim=0), weights.mean(dim=0), rtol=0, atol=1e-13)
    matrix, whole = graph.matrix(0, present).toarray(), graph.matrix(0).toarray()
    np.testing.assert_array_equal(matrix, matrix.T)
    for i in range(16):
        for j in range(16):
            if i != j:
                assert matrix[i, j] == (whole[i, j] if present[i] and present[j] else 0)


def test_absent_clients_on_a_directed_graph_are_refused() -> None:
    with pytest.raises(UsageError, match=r"absent clients \[1\] on exponential.*directed.*ring"):
        exponential(8).matrix(0, [index != 1 for index in range(8)])


def test_metropolis_weights_equal_networkx_style_definition() -> None:
    star = np.zeros((4, 4))
    star[0, 1:] = star[1:, 0] = 1
    expected = np.array(
        [[1 / 4, 1 / 4, 1 / 4, 1 / 4], [1 / 4, 3 / 4, 0, 0], [1 / 4, 0, 3 / 4, 0], [1 / 4, 0, 0, 3 / 4]]
    )
    np.testing.assert_allclose(metropolis(star), expected)
    with pytest.raises(UsageError, match="not symmetric"):
        metropolis([[0, 1], [0, 0]])


@pytest.mark.parametrize("degree", [2, 3, 4, 7])
def test_random_regular_graph_has_equal_degrees_and_is_repeatable(degree: int) -> None:
    graphs = [random_regular(30, degree, seed=seed).matrix(0).toarray() for seed in (0, 0, 1)]
    np.testing.assert_array_equal(graphs[0], graphs[1])
    assert not np.array_equal(graphs[0], graphs[2])
    links = (graphs[0] != 0).sum(axis=1) - (np.diag(graphs[0]) != 0)
    assert set(links) == {degree}


def test_server_weights_by_size_and_ignores_the_absent() -> None:
    server = Server([1, 2, 5])
    mixed = mix(torch.tensor([[1.0], [4.0], [100.0]]), server, first_step=0, steps=1, present=[True, True, False])
    assert mixed.flatten().tolist() == [3.0, 3.0, 3.0]
    assert server.count_messages(0, [True, True, False]) == 4


def test_isolated_clients_exchange_nothing() -> None:
    weights = torch.randn(3, 2)
    assert torch.equal(mix(weights, Isolated(3), first_step=0, steps=5), weights)
    assert Isolated(3).count_messages(0) == 0


@pytest.mark.parametrize(
    ("matrices", "complaint"),
    [
        ([[[0.5, 0.5], [0.4, 0.6]]], r"column [01] with the sum"),
        ([[[0.5, 0.4], [0.5, 0.5]]], r"row 0 with the sum 0\.9.*doubly stochastic.*metropolis"),
        ([np.eye(4)], r"4 groups without a link"),
        ([np.kron(np.eye(2), np.full((2, 2), 0.5))], r"2 groups.*clients \[0, 1\].*connected over one period"),
        ([[[0, 1], [1, 0]]], "swap their weights without end"),
        ([[[0, 1, 0], [0, 0, 1], [1, 0, 0]]], "swap their weights without end"),
        ([[[1.5, -0.5], [-0.5, 1.5]]], "negative"),
        ([[[float("nan"), 0.5], [0.5, 0.5]]], "not finite"),
        ([[[0.5, 0.5]]], r"shape \(1, 2\)"),
        ([np.full((2, 2), 0.5), np.full((3, 3), 1 / 3)], "2 and 3 clients"),
        ([], "no matrix"),
        ([[["a", "b"], ["c", "d"]]], "no matrix"),
    ],
)
def test_wrong_matrices_are_refused(matrices, complaint: str) -> None:
    with pytest.raises(UsageError, match=rf"^mine: .*{complaint}"):
        Topology("mine", matrices)


def test_a_schedule_connected_only_over_its_period_is_accepted() -> None:
    first, second = np.eye(4), np.eye(4)
    first[:2, :2] = first[2:, 2:] = 0.5
    second[1:3, 1:3] = second[np.ix_([0, 3], [0, 3])] = 0.5
    graph = Topology("pairs", [first, second])
    assert graph.contraction == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(UsageError, match="2 groups"):
        Topology("pairs", [first, first])


@pytest.mark.parametrize("name", GRAPHS)
def test_few_clients_need_no_special_case(name: str) -> None:
    for clients in (1, 2, 3):
        degree = [clients - 1] if name == "random regular" and clients > 1 else []
        graph = GRAPHS[name](clients, *degree) if clients > 1 or name != "random regular" else full(1)
        weights = torch.randn(clients, 3, dtype=torch.float64)
        mixed = mix(weights, graph, first_step=0, steps=100 * graph.period)
        assert consensus_distance(mixed) < 1e-9


def test_impossible_regular_graphs_are_refused() -> None:
    for clients, degree in ((5, 3), (4, 4), (6, 1)):
        with pytest.raises(UsageError, match=f"degree: got {degree} for {clients} clients"):
            random_regular(clients, degree)
