"""Clusters of network outputs: k-means, and the slow cluster of each class."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from uumamba.domain_generalization.probe import ProbeOutputs, check_outputs
from uumamba.domain_generalization.slow_examples import GroupSplit, SlowExamples
from uumamba.runtime.errors import require
from uumamba.runtime.seeds import generator_for, key_to_seed

EQUAL = 1e-6
"""Relative difference below which outputs are equal: batches of another size round differently."""


@dataclass(frozen=True)
class Clusters:
    """Partition of points.

    Attributes:
        assignment: the cluster of each point, ``(points,)`` int64.
        centres: the mean of each cluster, ``(clusters, features)`` float64.
        inertia: the sum of squared distances of points to the centre of their cluster.
    """

    assignment: Tensor
    centres: Tensor
    inertia: float


def k_means(points: Tensor, clusters: int = 2, *, seed: int = 0, restarts: int = 10, iterations: int = 300) -> Clusters:
    r"""Cluster points by k-means, the best of several descents.

    .. math:: \min_{c} \sum_i \min_j \lVert x_i - c_j \rVert_2^2

    Each descent starts at centres drawn by k-means++ and alternates between assigning and averaging until no point
    changes its cluster; an empty cluster gets the point farthest from its own centre. In float64 on the CPU, with
    generators keyed by seed and descent, so a seed gives the same clusters on every machine.

    Args:
        points: ``(points, features)``.
        clusters: their number; there must be as many different points.
        seed: of the first centres.
        restarts: descents.
        iterations: the most of each descent.

    Raises:
        UsageError: a number is less than 1, a point is not finite, or there are too few different points.

    Example:
        >>> k_means(torch.tensor([[0.0], [1.0], [9.0], [10.0], [11.0]])).inertia  # 2 * 0.5**2 + 2 * 1**2
        2.5

    References:
        Lloyd, *Least Squares Quantization in PCM*, IEEE Transactions on Information Theory 28(2), 1982.
        Arthur & Vassilvitskii, *k-means++: The Advantages of Careful Seeding*, SODA 2007.
        Differs from the paper: none.
    """
    for key, value in (("clusters", clusters), ("restarts", restarts), ("iterations", iterations)):
        require(value >= 1, key, got=value, expected="at least 1")
    require(points.ndim == 2, "points", got=tuple(points.shape), expected="(points, features)")
    require(points.isfinite().all(), "points", got="NaN or infinity", expected="finite numbers")
    points = points.detach().to("cpu", torch.float64)
    different = len(points.unique(dim=0))
    require(different >= clusters, "points", got=f"{different} different ones", expected=f"at least {clusters}")
    found = (
        _descend(points, _spread_out(points, clusters, generator_for(seed, "k-means", restart)), iterations)
        for restart in range(restarts)
    )
    return min(found, key=lambda each: each.inertia)


def find_slow(outputs: ProbeOutputs, *, seed: int = 0) -> SlowExamples:
    """Find the slow examples: in each class, the one of two clusters with the higher mean loss.

    Clusters are k-means with k = 2, the best of ten descents, keyed by seed and class. A class has no slow example, and
    its :class:`GroupSplit` says why, if it has less than two examples, if all its outputs are equal to a millionth, or
    if both clusters have the same loss.

    Args:
        outputs: of a network trained for a few epochs; see :func:`probe_classification`.
        seed: of the clustering.

    Raises:
        UsageError: there is no example, or an output or a loss is not finite.

    Example:
        >>> vectors = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.1, 0.9]])
        >>> losses = -vectors[range(4), [0, 0, 0, 1]].log()
        >>> outputs = ProbeOutputs(vectors, losses, torch.tensor([0, 0, 0, 1]), 0.25, "", 2)
        >>> found = find_slow(outputs)
        >>> found.slow, found.groups[1].note
        ((2,), 'one example cannot be split')

    References:
        Nguyen et al., *Changing the Training Data Distribution to Reduce Simplicity Bias Improves In-distribution
        Generalization*, NeurIPS 2024, arXiv:2404.17768.
        Differs from the paper: none; the rules for classes that cannot be split are ours.
    """
    check_outputs(outputs)
    slow, groups = [], []
    for group in range(outputs.group_count):
        members = (outputs.groups == group).nonzero()[:, 0]
        is_slow, split = _split(group, outputs.vectors[members], outputs.losses[members].double(), seed)
        slow.extend(members[is_slow].tolist())
        groups.append(split)
    size, settings = len(outputs.losses), {"outputs": outputs.kind}
    return SlowExamples(tuple(sorted(slow)), size, tuple(groups), seed, outputs.fingerprint, settings=settings)


def _spread_out(points: Tensor, clusters: int, generator: Generator) -> Tensor:
    """Draw centres by k-means++, each in proportion to the squared distance to the nearest one so far."""
    chosen = torch.randint(len(points), (1,), generator=generator)
    for _ in range(1, clusters):
        nearest = _squared_distances(points, points[chosen]).amin(1)
        chosen = torch.cat([chosen, torch.multinomial(nearest, 1, generator=generator)])
    return points[chosen]


def _descend(points: Tensor, centres: Tensor, iterations: int) -> Clusters:
    before = torch.full((len(points),), -1)
    for _ in range(iterations):
        assignment = _assign(points, centres)
        if torch.equal(assignment, before):
            break
        centres, before = _means(points, assignment, len(centres)), assignment
    assignment = _assign(points, centres)
    inertia = float((points - centres[assignment]).square().sum())
    return Clusters(assignment, centres, inertia)


def _assign(points: Tensor, centres: Tensor) -> Tensor:
    """Return the nearest centre of each point; a centre that is nearest to none gets the farthest point."""
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
    """Return ``(points, centres)``, by differences: products would cancel where points are close together."""
    return torch.stack([(points - centre).square().sum(1) for centre in centres], dim=1)


def _split(group: int, vectors: Tensor, losses: Tensor, seed: int) -> tuple[Tensor, GroupSplit]:
    """Return which members are slow, and a summary of the split."""
    note = "one example cannot be split" if len(vectors) else "no example"
    if len(vectors) > 1:
        is_constant = float((vectors - vectors[0]).abs().max()) <= EQUAL * float(vectors.abs().max())
        note = "all outputs are equal" if is_constant else "both clusters have the same loss"
        if not is_constant:
            is_slow = k_means(vectors, 2, seed=key_to_seed(seed, "slow examples", group)).assignment == 1
            means = losses[~is_slow].mean(), losses[is_slow].mean()
            if means[0] > means[1]:
                is_slow, means = ~is_slow, means[::-1]
            if means[0] != means[1]:
                return is_slow, GroupSplit(group, len(losses), int(is_slow.sum()), float(means[1]), float(means[0]))
    fast_loss = float(losses.mean()) if len(losses) else None
    return torch.zeros(len(losses), dtype=torch.bool), GroupSplit(group, len(losses), fast_loss=fast_loss, note=note)
