"""k-means of a few points, the same on every machine for a seed."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from uumamba.runtime.seeds import generator_for


@dataclass(frozen=True)
class Clusters:
    """A partition of points.

    Attributes:
        assignment: the cluster of each point, ``(points,)`` int64.
        centres: the mean of each cluster, ``(clusters, features)`` float64.
        inertia: the sum of squared distances of points to the centre of their cluster.
    """

    assignment: Tensor
    centres: Tensor
    inertia: float


def k_means(points: Tensor, clusters: int = 2, *, seed: int = 0, restarts: int = 10, iterations: int = 300) -> Clusters:
    r"""The partition that lowers the squared distances to the cluster means, the best of several descents.

    .. math:: \min_{c} \sum_i \min_j \lVert x_i - c_j \rVert_2^2

    Each descent starts at centres drawn by k-means++ and alternates between assigning and averaging until no point
    changes sides; a cluster that lost all its points takes over the point that lies farthest from its centre. In
    float64 on the CPU, with generators keyed by seed and descent.

    Args:
        points: ``(points, features)``.
        clusters: how many; there must be as many different points.
        seed: of the centres to start from.
        restarts: descents.
        iterations: of each descent at most.

    Raises:
        ValueError: a number makes no sense, a point is not finite, or there are too few different points.

    Example:
        >>> k_means(torch.tensor([[0.0], [1.0], [9.0], [10.0], [11.0]])).inertia  # 2 * 0.5**2 + 2 * 1**2
        2.5

    References:
        Lloyd, *Least Squares Quantization in PCM*, IEEE Transactions on Information Theory 28(2), 1982.
        Arthur & Vassilvitskii, *k-means++: The Advantages of Careful Seeding*, SODA 2007.
        Differs from the paper: none.
    """
    _check(points, clusters, restarts, iterations)
    points = points.detach().to("cpu", torch.float64)
    different = len(points.unique(dim=0))
    if different < clusters:
        raise ValueError(f"{clusters} clusters need as many different points, got {different} among {len(points)}")
    found = (
        _descend(points, _spread_out(points, clusters, generator_for(seed, "k-means", restart)), iterations)
        for restart in range(restarts)
    )
    return min(found, key=lambda each: each.inertia)


def _spread_out(points: Tensor, clusters: int, generator: Generator) -> Tensor:
    """Centres of k-means++: each next one is drawn in proportion to the squared distance to the nearest so far."""
    chosen = torch.randint(len(points), (1,), generator=generator)
    for _ in range(1, clusters):
        nearest = _squared_distances(points, points[chosen]).amin(1)
        chosen = torch.cat([chosen, torch.multinomial(nearest, 1, generator=generator)])
    return points[chosen]


def _descend(points: Tensor, centres: Tensor, iterations: int) -> Clusters:
    before = torch.full((len(points),), -1)
    for _ in range(iterations):
        assignment = assign(points, centres)
        if torch.equal(assignment, before):
            break
        centres, before = _means(points, assignment, len(centres)), assignment
    assignment = assign(points, centres)
    inertia = float((points - centres[assignment]).square().sum())
    return Clusters(assignment, centres, inertia)


def assign(points: Tensor, centres: Tensor) -> Tensor:
    """The nearest centre of each point; a centre that is nearest to none gets the point worst served."""
    distances = _squared_distances(points, centres)
    nearest, assignment = distances.min(1)
    for empty in (assignment.bincount(minlength=len(centres)) == 0).nonzero()[:, 0].tolist():
        worst = int(nearest.argmax())
        assignment[worst], nearest[worst] = empty, 0
    return assignment


def _means(points: Tensor, assignment: Tensor, clusters: int) -> Tensor:
    sums = points.new_zeros(clusters, points.shape[1]).index_add_(0, assignment, points)
    return sums / assignment.bincount(minlength=clusters)[:, None]


def _squared_distances(points: Tensor, centres: Tensor) -> Tensor:
    """``(points, centres)``; by differences, since products cancel where points lie close together."""
    return torch.stack([(points - centre).square().sum(1) for centre in centres], dim=1)


def _check(points: Tensor, clusters: int, restarts: int, iterations: int) -> None:
    if points.ndim != 2:
        raise ValueError(f"points must be (points, features), got shape {tuple(points.shape)}")
    for name, value in (("clusters", clusters), ("restarts", restarts), ("iterations", iterations)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not points.isfinite().all():
        raise ValueError("points must be finite, got NaN or infinity among them")
