"""Cases to forget that the loss still recognises."""

from collections.abc import Collection, Mapping
from operator import attrgetter

import numpy as np

from uumamba.pipelines.forgetting.case_measures import CaseMeasure

LOSSES = (attrgetter("loss"), attrgetter("voxel_loss"))


def find_recognised(forget: Mapping[str, CaseMeasure], unseen: Collection[CaseMeasure]) -> list[str]:
    """List cases with a lower loss than unseen ones of equal rank.

    The case with the i-th lowest of n losses is compared with the quantile (i - 1/2) / n of the unseen cases' losses,
    by both losses of a case. If no case is recognised, the losses of the cases to forget are distributed like those of
    unseen ones, or higher.

    Example:
        >>> low, high = CaseMeasure(0.1, 0.1, 0.9), CaseMeasure(0.5, 0.5, 0.8)
        >>> find_recognised({"a": low, "b": high}, [low, high])
        []
        >>> find_recognised({"a": low, "b": low}, [low, high])
        ['b']
    """
    found: set[str] = set()
    shares = (np.arange(len(forget)) + 0.5) / len(forget)
    for loss in LOSSES:
        ranked = sorted(forget, key=lambda case_id: (loss(forget[case_id]), case_id))
        targets = np.quantile([loss(each) for each in unseen], shares, method="hazen")
        found |= {
            case_id for case_id, target in zip(ranked, targets, strict=True) if loss(forget[case_id]) < float(target)
        }
    return sorted(found)
