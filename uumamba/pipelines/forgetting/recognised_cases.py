"""Cases to forget that the loss still recognises."""

from collections.abc import Collection, Mapping
from operator import attrgetter

import numpy as np

from uumamba.pipelines.forgetting.case_measures import CaseMeasure

LOSSES = ("loss", "voxel_loss")
"""The losses of a case by which an observer may recognise it."""


def find_recognised(forget: Mapping[str, CaseMeasure], unseen: Collection[CaseMeasure]) -> dict[str, list[str]]:
    """List, for each loss, cases below unseen ones of equal rank.

    The case with the i-th lowest of n losses is compared with the quantile (i - 1/2) / n of the unseen cases' losses.
    No case is recognised by a loss that is not lower for the cases to forget more often than for unseen ones: then an
    observer's area under the curve is at most 1/2, that of chance.

    Example:
        >>> low, high = CaseMeasure(0.1, 0.1, 0.9), CaseMeasure(0.5, 0.5, 0.8)
        >>> find_recognised({"a": low, "b": high}, [low, high])
        {'loss': [], 'voxel_loss': []}
        >>> find_recognised({"a": low, "b": low}, [low, high])
        {'loss': ['b'], 'voxel_loss': ['b']}
    """
    found = {}
    for name in LOSSES:
        loss = attrgetter(name)
        own = {case_id: float(loss(case)) for case_id, case in forget.items()}
        found[name] = _find_lower(own, np.array([loss(case) for case in unseen]))
    return found


def _find_lower(losses: Mapping[str, float], unseen: np.ndarray) -> list[str]:
    ranked = sorted(losses, key=lambda case_id: (losses[case_id], case_id))
    own = np.array([losses[case_id] for case_id in ranked])
    if np.sign(unseen - own[:, None]).mean() <= 0:
        return []
    shares = (np.arange(len(own)) + 0.5) / len(own)
    is_lower = own < np.quantile(unseen, shares, method="hazen")
    return sorted(case_id for case_id, lower in zip(ranked, is_lower, strict=True) if lower)
