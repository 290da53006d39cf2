"""K-means finds the best partition; clusters of higher loss are slow."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from uumamba.domain_generalization import ProbeOutputs, find_slow, probe_segmentation, split_in_two


def inertia_of(points: Tensor, is_second: Tensor) -> float:
    """Sum of squared distances to the mean of the own cluster."""
    parts = [points[is_second], points[~is_second]]
    return sum(float((part - part.mean(0)).square().sum()) for part in parts)


@pytest.mark.parametrize("seed", range(4))
def test_two_clusters_of_eight_points_are_the_best_of_all_partitions(seed: int) -> None:
    points = torch.randn(8, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = inertia_of(points, split_in_two(points, restarts=30))
    sides = [torch.tensor([False, *each]) for each in product((False, True), repeat=7) if any(each)]
    assert found == pytest.approx(min(inertia_of(points, each) for each in sides), rel=1e-9)


def test_a_larger_set_is_split_as_well_as_by_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.cluster")
    generator = torch.Generator().manual_seed(5)
    points = (2 * torch.randn(240, 3, generator=generator) + 3 * torch.eye(3)[torch.arange(240) % 3]).softmax(1)
    reference = sklearn.KMeans(2, n_init=20, random_state=0).fit(points.double().numpy())
    assert inertia_of(points.double(), split_in_two(points)) == pytest.approx(reference.inertia_, rel=1e-6)


def test_a_seed_gives_the_same_clusters_and_keeps_the_global_generator() -> None:
    points = torch.rand(60, 3)
    before = torch.random.get_rng_state()
    assert torch.equal(split_in_two(points, seed=7), split_in_two(points, seed=7))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_points_far_from_the_origin_are_split_like_points_around_it() -> None:
    points = torch.tensor([[0.0], [1e-3], [5e-3], [6e-3]], dtype=torch.float64)
    for shift in (0.0, 1e6):
        first, second, third, fourth = split_in_two(points + shift).tolist()
        assert first == second != third == fourth


def outputs_of(vectors: Tensor, losses: Tensor, groups: Tensor, *, group_count: int | None = None) -> ProbeOutputs:
    count = int(groups.max()) + 1 if group_count is None else group_count
    return ProbeOutputs(vectors, losses, groups, 0.5, "the data", count, "probabilities")


def two_sorts(*, seed: int = 0, classes: int = 6) -> tuple[ProbeOutputs, set[int]]:
    """Outputs with two clusters per class, the smaller slow in even classes."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(classes).repeat_interleave(30)[torch.randperm(30 * classes, generator=generator)]
    small = torch.rand(len(groups), generator=generator) < 0.25
    vectors = 0.05 * torch.randn(len(groups), 3, generator=generator) + small[:, None] * torch.tensor([1.0, -1.0, 0.0])
    is_slow = small == (groups % 2 == 0)
    losses = is_slow + torch.rand(len(groups), generator=generator)
    return outputs_of(vectors, losses, groups), set(is_slow.nonzero()[:, 0].tolist())


def test_the_cluster_with_the_higher_loss_is_slow_in_each_class() -> None:
    outputs, slow = two_sorts()
    found = find_slow(outputs)
    assert set(found.slow) == slow
    assert list(found.slow) == sorted(slow)
    assert (found.size, found.fingerprint, found.settings) == (180, "the data", {"outputs": "probabilities"})
    for split in found.groups:
        members = [place for place in range(180) if outputs.groups[place] == split.group]
        losses = torch.tensor([float(outputs.losses[place]) for place in members if place in slow])
        assert (split.size, split.slow, split.note) == (30, len(losses), "")
        assert split.slow_loss == pytest.approx(float(losses.mean()), rel=1e-6)
        assert split.fast_loss is not None
        assert split.fast_loss < split.slow_loss


def test_a_class_that_cannot_be_split_has_no_slow_example_but_a_note() -> None:
    vectors = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.5, 0.5 + 1e-7], [0.5, 0.5], [0.1, 0.9], [0.9, 0.1]])
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 6.0])
    groups = torch.tensor([0, 0, 1, 1, 1, 3, 3])
    vectors, losses, groups = (torch.cat([each, each[:1]]) for each in (vectors, losses, groups))
    groups[-1] = 4
    found = find_slow(outputs_of(vectors, losses, groups))
    assert found.slow == (1,)
    assert [split.note for split in found.groups] == [
        "",
        "all outputs are equal",
        "no example",
        "both clusters have the same loss",
        "one example cannot be split",
    ]
    assert [(split.size, split.slow) for split in found.groups] == [(2, 1), (3, 0), (0, 0), (2, 0), (1, 0)]
    assert [split.fast_loss for split in found.groups] == [1.0, 4.0, None, 6.0, 1.0]


def test_badly_segmented_cases_are_slow_in_each_phase() -> None:
    generator = torch.Generator().manual_seed(4)
    label = torch.zeros(24, 1, 12, 12, dtype=torch.long)
    for unit, side in zip(label[:, 0], torch.randint(5, 8, (24,), generator=generator).tolist(), strict=True):
        unit[2 : 2 + side, 3 : 3 + side] = 1
    faint = torch.arange(24) % 5 == 2
    contrast = torch.where(faint, 0.45, 1.0)[:, None, None, None]
    image = contrast * label + 0.05 * torch.randn(label.shape, generator=generator)

    def threshold(image: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(image), 20 * (image - 0.5)], dim=1)

    phase = [place % 2 for place in range(24)]
    outputs = probe_segmentation(threshold, [(image[:9], label[:9]), (image[9:], label[9:])], groups=phase)
    found = find_slow(outputs)
    assert found.slow == tuple(faint.nonzero()[:, 0].tolist())
    assert [split.size for split in found.groups] == [12, 12]
    assert found.settings == {"outputs": "segmentation"}


@pytest.mark.parametrize("where", ["vectors", "losses"])
def test_missing_outputs_and_outputs_that_are_not_finite_are_refused(where: str, refused: Any) -> None:
    outputs, _ = two_sorts()
    getattr(outputs, where)[17] = float("nan")
    with refused("outputs", got="NaN or infinite values, first in example 17"):
        find_slow(outputs)
    with refused("outputs", got="no example"):
        find_slow(outputs_of(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, dtype=torch.long), group_count=2))
