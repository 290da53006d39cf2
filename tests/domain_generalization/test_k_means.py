"""k-means finds the best partition where it can be counted out, and one as good as scikit-learn's where it cannot."""

from itertools import product

import pytest
import torch
from torch import Tensor

from uumamba.domain_generalization import k_means
from uumamba.domain_generalization.k_means import assign


def inertia_of(points: Tensor, assignment: Tensor) -> float:
    """The definition: squared distances to the mean of one's own cluster."""
    parts = [points[assignment == cluster] for cluster in assignment.unique()]
    return sum(float((part - part.mean(0)).square().sum()) for part in parts)


@pytest.mark.parametrize("seed", range(12))
def test_two_clusters_of_eight_points_are_the_best_of_all_partitions(seed: int) -> None:
    points = torch.randn(8, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = k_means(points, 2, restarts=100)
    best = min(inertia_of(points, torch.tensor([0, *sides])) for sides in product((0, 1), repeat=7))
    assert found.inertia == pytest.approx(best, rel=1e-9)
    assert inertia_of(points, found.assignment) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("clusters", [2, 3, 5])
def test_the_partition_is_scikit_learn_s(clusters: int) -> None:
    sklearn = pytest.importorskip("sklearn.cluster")
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        of_cluster = torch.arange(clusters).repeat_interleave(torch.arange(12, 12 + 9 * clusters, 9))
        means = 6 * torch.randn(clusters, 4, generator=generator, dtype=torch.float64)
        points = means[of_cluster] + torch.randn(len(of_cluster), 4, generator=generator, dtype=torch.float64)
        expected = sklearn.KMeans(clusters, n_init=50, random_state=0).fit(points.numpy())
        found = k_means(points, clusters, seed=seed, restarts=50)
        assert found.inertia == pytest.approx(expected.inertia_, rel=1e-9)
        of_other = torch.from_numpy(expected.labels_).long()
        pairs = {(int(a), int(b)) for a, b in zip(found.assignment, of_other, strict=True)}
        assert len(pairs) == clusters  # the same parts under other numbers
        for cluster in range(clusters):
            torch.testing.assert_close(found.centres[cluster], points[found.assignment == cluster].mean(0))


def test_a_seed_gives_the_same_clusters_and_the_global_generator_is_left_alone() -> None:
    points = torch.rand(60, 3)
    before = torch.random.get_rng_state()
    first, second = k_means(points, 4, seed=7), k_means(points, 4, seed=7)
    assert torch.equal(first.assignment, second.assignment)
    assert torch.equal(first.centres, second.centres)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_points_far_from_the_origin_are_split_like_those_around_it() -> None:
    points = torch.tensor([[0.0], [1e-3], [5e-3], [6e-3]], dtype=torch.float64)
    for shift in (0.0, 1e6):
        assignment = k_means(points + shift, 2).assignment
        assert assignment[0] == assignment[1] != assignment[2] == assignment[3]


def test_more_descents_are_never_worse() -> None:
    points = torch.randn(40, 2, generator=torch.Generator().manual_seed(3))
    found = [k_means(points, 6, restarts=count).inertia for count in (1, 3, 10)]
    assert found == sorted(found, reverse=True)


def test_a_cluster_without_points_takes_the_one_that_lies_farthest_off() -> None:
    points = torch.tensor([[0.0], [1.0], [9.0]])
    assert assign(points, torch.tensor([[0.0], [100.0]])).tolist() == [0, 0, 1]
    assert k_means(points, 3).inertia == 0


@pytest.mark.parametrize(
    ("points", "clusters", "complaint"),
    [
        (torch.ones(5, 2), 2, "2 clusters need as many different points, got 1 among 5"),
        (torch.ones(1, 2), 2, "got 1 among 1"),
        (torch.tensor([[0.0], [float("nan")]]), 2, "points must be finite"),
        (torch.ones(4), 2, r"points must be \(points, features\), got shape \(4,\)"),
        (torch.rand(4, 2), 0, "clusters must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_split_is_refused(points: Tensor, clusters: int, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        k_means(points, clusters)
