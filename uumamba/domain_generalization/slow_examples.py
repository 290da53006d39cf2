"""Which examples a network learns slowly: in each class, the cluster of outputs with the higher loss."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from uumamba.domain_generalization.answers import Answers
from uumamba.domain_generalization.k_means import k_means
from uumamba.runtime.seeds import key_to_seed

EQUAL = 1e-6
"""Outputs that differ by less, in that of the largest, are equal: batches of another size round differently."""


@dataclass(frozen=True)
class GroupSplit:
    """How one class (or another group) fell apart.

    Attributes:
        group: its number.
        size: how many examples it has.
        slow: how many of them are slow.
        slow_loss: their mean loss; None where none is slow.
        fast_loss: the mean loss of the others; None where there are none.
        note: why none is slow, or nothing.
    """

    group: int
    size: int
    slow: int = 0
    slow_loss: float | None = None
    fast_loss: float | None = None
    note: str = ""


@dataclass(frozen=True)
class SlowExamples:
    """The examples to be shown more than once, with all that an audit asks for.

    Attributes:
        slow: their places in the data set, ascending.
        size: of the data set.
        groups: how each class fell apart.
        seed: of the clustering and of whatever trained the network.
        fingerprint: of the data set; see :func:`fingerprint_of`.
        epoch: how long the network had been trained, where a probe chose that.
        errors: the probe's training error before the first epoch and after each.
        settings: other numbers that decided, as plain values.
    """

    slow: tuple[int, ...]
    size: int
    groups: tuple[GroupSplit, ...]
    seed: int
    fingerprint: str
    epoch: int | None = None
    errors: tuple[float, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


def find_slow(answers: Answers, *, seed: int = 0) -> SlowExamples:
    """Split the outputs of each class in two and take the half with the higher mean loss.

    Clusters are k-means with k = 2, the best of ten descents, keyed by seed and class. A class has no slow example, and
    its :class:`GroupSplit` says why, if it has no or one example, if all its outputs are equal to a millionth, or if
    both clusters have the same loss.

    Args:
        answers: of a network trained for a few epochs; see :func:`classification_answers`.
        seed: of the clustering.

    Raises:
        ValueError: there is no example, or an output or a loss is not finite.

    Example:
        >>> outputs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.1, 0.9]])
        >>> losses = -outputs[range(4), [0, 0, 0, 1]].log()
        >>> answers = Answers(outputs, losses, torch.tensor([0, 0, 0, 1]), 0.25, "", 2)
        >>> found = find_slow(answers)
        >>> found.slow, found.groups[1].note
        ((2,), 'one example cannot be split')

    References:
        Nguyen et al., *Changing the Training Data Distribution to Reduce Simplicity Bias Improves In-distribution
        Generalization*, NeurIPS 2024, arXiv:2404.17768.
        Differs from the paper: none; what happens where a class cannot be split is ours.
    """
    check_answers(answers)
    slow, groups = [], []
    for group in range(answers.group_count):
        members = (answers.groups == group).nonzero()[:, 0]
        is_slow, split = _split(group, answers.vectors[members], answers.losses[members].double(), seed)
        slow.extend(members[is_slow].tolist())
        groups.append(split)
    size, settings = len(answers.losses), {"outputs": answers.kind}
    return SlowExamples(tuple(sorted(slow)), size, tuple(groups), seed, answers.fingerprint, settings=settings)


def check_answers(answers: Answers) -> None:
    """Refuse answers that say nothing.

    Raises:
        ValueError: there is no example, or an output or a loss is not finite.
    """
    if not len(answers.losses):
        raise ValueError("there is no example to look for slow ones among")
    finite = answers.losses.isfinite()
    if finite.all():
        finite = answers.vectors.isfinite().all(1)
    if not finite.all():
        bad = (~finite).nonzero()[:, 0].tolist()
        raise ValueError(
            f"the outputs of {len(bad)} of {len(finite)} examples are not finite, the first is example {bad[0]}: "
            "either its image holds NaN, or the training diverged and needs a lower learning rate"
        )


def _split(group: int, vectors: Tensor, losses: Tensor, seed: int) -> tuple[Tensor, GroupSplit]:
    """Which members are slow, and how the group fell apart."""
    none = torch.zeros(len(losses), dtype=torch.bool)
    note = next(_reasons_against(vectors), "")
    if not note:
        is_slow = k_means(vectors, 2, seed=key_to_seed(seed, "slow examples", group)).assignment == 1
        means = losses[~is_slow].mean(), losses[is_slow].mean()
        if means[0] > means[1]:
            is_slow, means = ~is_slow, means[::-1]
        if means[0] != means[1]:
            fast_loss, slow_loss = map(float, means)
            return is_slow, GroupSplit(group, len(losses), int(is_slow.sum()), slow_loss, fast_loss)
        note = "both clusters have the same loss"
    return none, GroupSplit(group, len(losses), fast_loss=float(losses.mean()) if len(losses) else None, note=note)


def _reasons_against(vectors: Tensor) -> Iterator[str]:
    if len(vectors) < 2:
        yield "one example cannot be split" if len(vectors) else "no example"
    elif float((vectors - vectors[0]).abs().max()) <= EQUAL * float(vectors.abs().max()):
        yield "all outputs are equal"
