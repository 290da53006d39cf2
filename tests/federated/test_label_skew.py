"""Tests of the split of samples over clients by Dirichlet shares."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from uumamba.federated import dirichlet_split

LABELS = np.repeat(np.arange(10), 64)


@pytest.mark.parametrize(("clients", "alpha"), [(1, 0.3), (16, 0.3), (16, 0.6), (64, 0.3), (16, 1e6)])
@pytest.mark.parametrize("at_least", [1, 3])
def test_every_sample_has_one_client_and_every_client_enough_samples(clients: int, alpha: float, at_least: int) -> None:
    for seed in range(3):
        parts = dirichlet_split(LABELS, clients, alpha, seed, at_least=at_least)
        assert len(parts) == clients
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(LABELS)))
        assert min(map(len, parts)) >= at_least
        assert all(np.array_equal(part, np.sort(part)) for part in parts)


def test_equal_seeds_give_equal_splits_whatever_holds_the_labels() -> None:
    first = dirichlet_split(LABELS, 16, 0.3, seed=4)
    for labels in (LABELS, LABELS.tolist(), torch.from_numpy(LABELS), [f"class {each}" for each in LABELS]):
        again = dirichlet_split(labels, 16, 0.3, seed=4)
        assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    other = dirichlet_split(LABELS, 16, 0.3, seed=5)
    assert not all(np.array_equal(one, each) for one, each in zip(first, other, strict=True))


@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_a_client_s_share_of_a_class_has_the_beta_distribution_of_dirichlet_shares(alpha: float) -> None:
    clients, size = 4, 2000
    shares = [
        np.isin(part, range(start, start + size)).sum() / size
        for seed in range(25)
        for part in dirichlet_split(np.repeat([0, 1], size), clients, alpha, seed, at_least=0)[:1]
        for start in (0, size)
    ]
    assert kstest(shares, "beta", (alpha, (clients - 1) * alpha)).pvalue > 0.05


def test_a_large_alpha_gives_every_client_its_share_of_every_class() -> None:
    for part in dirichlet_split(LABELS, 16, 1e9):
        assert np.bincount(LABELS[part]).tolist() == [4] * 10


def test_samples_of_a_class_are_dealt_in_random_order() -> None:
    parts = dirichlet_split(np.zeros(400, dtype=int), 2, 1e6)
    assert [part.mean() for part in parts] == pytest.approx([199.5, 199.5], abs=30)


def test_a_split_without_samples_needs_no_sample_per_client() -> None:
    assert [len(part) for part in dirichlet_split([], 3, 0.3, at_least=0)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("key", "labels", "options"),
    [
        ("labels", np.zeros((4, 2)), {"clients": 2}),
        ("labels", [0, 1, 2], {"clients": 4}),
        ("labels", [0, 1, 2], {"clients": 2, "at_least": 2}),
        ("at_least", [0] * 40, {"clients": 4, "at_least": 10}),
        ("alpha", LABELS, {"alpha": 0.0}),
        ("alpha", LABELS, {"alpha": float("nan")}),
        ("clients", LABELS, {"clients": 0}),
    ],
)
def test_an_impossible_split_is_refused(key: str, labels: Any, options: dict[str, Any], refused: Any) -> None:
    with refused(key):
        dirichlet_split(labels, **{"clients": 2, "alpha": 0.3} | options)
