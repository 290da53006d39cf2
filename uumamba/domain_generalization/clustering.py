"""K-means clustering of network outputs, and the slow cluster per class."""

import torch
from torch import Generator, Tensor

from uumamba.domain_generalization.probe import ProbeOutputs, check_outputs
from uumamba.domain_generalization.slow_examples import GroupSplit, SlowExamples
from uumamba.runtime.options import check_options
from uumamba.runtime.seeds import generator_for, key_to_seed

EQUAL = 1e-6
"""Relative difference below which outputs are equal: batches of another size round differently."""


@check_options
def split_in_two(points: Tensor, *, seed: int = 0, restarts: int = 10) -> Tensor:
    r"""Split points into two clusters by k-means.

    .. math:: \min_{c_0, c_1} \sum_i \min_j \lVert x_i - c_j \rVert_2^2

    Each restart draws its first centres by k-means++, then alternates between assigning points and averaging clusters
    until no point changes its cluster, at most 300 times. The restart with the lowest sum wins. Computed in float64 on
    the CPU, with generators keyed by seed and restart, so a seed gives the same clusters on every machine.

    Args:
        points: ``(points, features)``, at least two different points.
        seed: seed of the first centres.
        restarts: number of restarts.

    Returns:
        ``(points,)`` bool; True in the second cluster.

    Example:
        >>> split_in_two(torch.tensor([[0.0], [1.0], [9.0], [10.0], [11.0]])).int()
        tensor([0, 0, 1, 1, 1], dtype=torch.int32)

    References:
        Lloyd, *Least Squares Quantization in PCM*, IEEE Transactions on Information Theory 28(2), 1982.
        Arthur & Vassilvitskii, *k-means++: The Advantages of Careful Seeding*, SODA 2007.
        Differs from the paper: none.
    """
    points = points.detach().to("cpu", torch.float64)
    results = (_run_k_means(points, generator_for(seed, "k-means", restart)) for restart in range(restarts))
    return min(results, key=lambda result: result[0])[1]


@check_options
def find_slow(outputs: ProbeOutputs, *, seed: int = 0) -> SlowExamples:
    """Find the slow examples: the cluster with the higher loss per class.

    K-means splits each class into two clusters, keyed by seed and class. The cluster with the higher mean loss is slow.
    A class has no slow example if it has fewer than two examples, if all its outputs are equal to a millionth, or if
    both clusters have the same loss; ``note`` of its :class:`GroupSplit` gives the reason.

    Args:
        outputs: outputs of a network trained for a few epochs; see :func:`probe_classification`.
        seed: seed of the clustering.

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
        Differs from the paper: none; the rules for classes that cannot be split are this project's.
    """
    check_outputs(outputs)
    slow, groups = [], []
    for group in range(outputs.group_count):
        members = (outputs.groups == group).nonzero()[:, 0]
        is_slow, split = _split_group(group, outputs.vectors[members], outputs.losses[members].double(), seed)
        slow.extend(members[is_slow].tolist())
        groups.append(split)
    return SlowExamples(
        slow=tuple(sorted(slow)),
        size=len(outputs.losses),
        groups=tuple(groups),
        seed=seed,
        fingerprint=outputs.fingerprint,
        settings={"outputs": outputs.kind},
    )


def _run_k_means(points: Tensor, generator: Generator) -> tuple[float, Tensor]:
    """Return the sum of squared distances and the second cluster's mask."""
    first = points[torch.randint(len(points), (1,), generator=generator)]
    # k-means++ draws the second centre in proportion to the squared distance to the first.
    second = points[torch.multinomial(_squared_distances(points, first)[:, 0], 1, generator=generator)]
    centres, before = torch.cat([first, second]), torch.full((len(points),), -1)
    for _ in range(300):
        assignment = _squared_distances(points, centres).min(1).indices
        if torch.equal(assignment, before):
            break
        sums = points.new_zeros(centres.shape).index_add_(0, assignment, points)
        centres, before = sums / assignment.bincount(minlength=2)[:, None], assignment
    assignment = _squared_distances(points, centres).min(1).indices
    return float((points - centres[assignment]).square().sum()), assignment == 1


def _squared_distances(points: Tensor, centres: Tensor) -> Tensor:
    """Return squared distances ``(points, centres)``.

    Computed from differences: the expanded products cancel for points that are close together.
    """
    return torch.stack([(points - centre).square().sum(1) for centre in centres], dim=1)


def _split_group(group: int, vectors: Tensor, losses: Tensor, seed: int) -> tuple[Tensor, GroupSplit]:
    """Return the mask of the slow members and a summary."""
    note = "one example cannot be split" if len(vectors) else "no example"
    if len(vectors) > 1:
        is_constant = float((vectors - vectors[0]).abs().max()) <= EQUAL * float(vectors.abs().max())
        note = "all outputs are equal" if is_constant else "both clusters have the same loss"
        if not is_constant:
            is_slow = split_in_two(vectors, seed=key_to_seed(seed, "slow examples", group))
            means = losses[~is_slow].mean(), losses[is_slow].mean()
            if means[0] > means[1]:
                is_slow, means = ~is_slow, means[::-1]
            if means[0] != means[1]:
                return is_slow, GroupSplit(group, len(losses), int(is_slow.sum()), float(means[1]), float(means[0]))
    fast_loss = float(losses.mean()) if len(losses) else None
    return torch.zeros(len(losses), dtype=torch.bool), GroupSplit(group, len(losses), fast_loss=fast_loss, note=note)
