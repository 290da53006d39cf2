"""Membership inference by a threshold: how well losses reveal the training set."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from uumamba.runtime.errors import require
from uumamba.runtime.options import BetweenZeroAndOne, PositiveInt, check_options
from uumamba.runtime.seeds import generator_for

Values = Sequence[Any] | NDArray[Any] | Tensor
Groups = Sequence[Hashable] | NDArray[Any] | Tensor


@dataclass(frozen=True)
class MembershipResult:
    """Success of a membership attack.

    Attributes:
        advantage: largest true minus false positive rate of a threshold, from 0 (chance) to 1.
        auc: area under the receiver operating characteristic, 0.5 by chance.
        advantage_interval: bootstrap interval of the advantage.
        auc_interval: bootstrap interval of the area.
        members: number of members.
        non_members: number of non-members.
    """

    advantage: float
    auc: float
    advantage_interval: tuple[float, float]
    auc_interval: tuple[float, float]
    members: int
    non_members: int


@check_options
def attack_by_loss(member_losses: Values, non_member_losses: Values, **options: Any) -> MembershipResult:
    r"""Attack that takes samples of low loss for members.

    .. math:: \mathrm{advantage} = \max_t\ \Pr[L \le t \mid \text{member}] - \Pr[L \le t \mid \text{non-member}]

    Args:
        member_losses: losses of samples of the training set, or of the forget set, ``(members,)``.
        non_member_losses: losses of similar samples that the network never saw, ``(non_members,)``.
        options: as for :func:`attack_by_score`.

    Raises:
        UsageError: as from :func:`attack_by_score`.

    Example:
        >>> result = attack_by_loss([0.1, 0.2, 0.9], [0.5, 0.8, 1.0])
        >>> round(result.advantage, 3), round(result.auc, 3)  # 2/3 of members and no other at most 0.2
        (0.667, 0.778)

    References:
        Yeom et al., *Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting*, CSF 2018,
        arXiv:1709.01604.
        Differs from the paper: the best threshold of the evaluated samples, which favours the attacker, instead of the
        mean training loss.
    """
    members, others = (
        -_read_values(member_losses, "member_losses"),
        -_read_values(non_member_losses, "non_member_losses"),
    )
    return attack_by_score(members, others, **options)


@check_options
def attack_by_score(
    member_scores: Values,
    non_member_scores: Values,
    *,
    member_groups: Groups | None = None,
    non_member_groups: Groups | None = None,
    confidence: BetweenZeroAndOne = 0.95,
    draws: PositiveInt = 1000,
    seed: int = 0,
) -> MembershipResult:
    """Attack that takes samples of high score for members.

    The intervals are percentiles of a bootstrap that draws groups, such as patients, of members and non-members
    separately. Without groups every sample is one.

    **Bias.** The advantage is a maximum over thresholds of these very samples, so it is above 0 by chance too, more so
    for few samples. Compare it with that of a retrained network on the same samples, or use the area, which has no such
    bias.

    **Edge cases.** Equal scores are on one side of every threshold and count half in the area. Infinite scores are
    allowed. A side of one group has no interval: (NaN, NaN).

    Args:
        member_scores: ``(members,)``.
        non_member_scores: ``(non_members,)``.
        member_groups: group of each member.
        non_member_groups: group of each non-member.
        confidence: coverage of the intervals.
        draws: number of bootstrap draws.
        seed: seed of the bootstrap.

    Raises:
        UsageError: a side is empty or has a NaN, the groups do not fit, or an option is out of range.

    Example:
        >>> attack_by_score([3.0, 2.0], [1.0, 2.0]).auc  # 3 pairs in order and one equal, of 4
        0.875
    """
    members, others = _read_values(member_scores, "member_scores"), _read_values(non_member_scores, "non_member_scores")
    sides = [
        _read_groups(member_groups, len(members), "member_groups"),
        _read_groups(non_member_groups, len(others), "non_member_groups"),
    ]
    _, level = np.unique(np.concatenate([members, others]), return_inverse=True)
    levels = (level[: len(members)], level[len(members) :])
    advantage, auc = _measure(levels, (np.ones(len(members)), np.ones(len(others))))
    intervals = np.full((2, 2), math.nan)
    if all(groups.max() > 0 for groups in sides):
        generator = generator_for(seed, "membership")
        drawn = [_measure(levels, [_draw_weights(groups, generator) for groups in sides]) for _ in range(draws)]
        intervals = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0).T
    (advantage_low, advantage_high), (auc_low, auc_high) = intervals.tolist()
    return MembershipResult(
        advantage, auc, (advantage_low, advantage_high), (auc_low, auc_high), len(members), len(others)
    )


def _read_values(values: Values, key: str) -> NDArray[np.float64]:
    given = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values
    found: NDArray[np.float64] = np.asarray(given, dtype=np.float64)
    require(
        found.ndim == 1 and len(found),
        key,
        got=f"values of shape {found.shape}",
        expected="one number per sample, at least one sample",
    )
    require(
        not np.isnan(found).any(),
        key,
        got=f"NaN for sample {int(np.isnan(found).argmax())}",
        expected="a number for every sample",
        fix="check the network's weights and the inputs",
    )
    return found


def _read_groups(groups: Groups | None, samples: int, key: str) -> NDArray[np.int64]:
    """Return the number of each sample's group."""
    if groups is None:
        return np.arange(samples)
    require(len(groups) == samples, key, got=f"{len(groups)} groups", expected=f"one per sample, {samples}")
    listed = groups.tolist() if isinstance(groups, Tensor) else groups  # tensors have no equal hashes
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in listed])


def _draw_weights(groups: NDArray[np.int64], generator: Generator) -> NDArray[np.float64]:
    count = int(groups.max()) + 1
    times = torch.randint(count, (count,), generator=generator).bincount(minlength=count).numpy()
    found: NDArray[np.float64] = times[groups].astype(np.float64)
    return found


def _measure(levels: Sequence[NDArray[np.int64]], weights: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Return advantage and area of weighted samples by ranks of scores."""
    count = int(max(level.max() for level in levels)) + 1
    rates = []
    for level, weight in zip(levels, weights, strict=True):
        from_top = np.cumsum(np.bincount(level, weight, count)[::-1])
        rates.append(np.concatenate([[0.0], from_top / from_top[-1]]))
    true, false = rates
    return float((true - false).max()), float(np.trapezoid(true, false))
