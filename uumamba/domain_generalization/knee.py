"""The epoch at which a training stops getting better fast."""

import math
from collections.abc import Sequence


def find_knee(errors: Sequence[float], *, slowing: float = 0.1, learned: float = 0.1) -> int | None:
    r"""The first epoch in which the error falls by less than a share of its largest fall so far.

    .. math:: t = \min \Big\{ t \ge 1 : e_{t-1} - e_t < s \cdot \max_{u \le t} (e_{u-1} - e_u)
              \ \text{and}\ e_0 - e_t \ge \ell\, e_0 \Big\}

    with s = ``slowing`` and :math:`\ell` = ``learned``, so that a plateau at the start is not taken for the end of the
    fall. It is known as soon as it is reached and does not change with what comes later. An error that rises has
    slowed; the first epoch never has.

    Args:
        errors: the training error before the first epoch and after each.
        slowing: the share of the largest fall below which the fall has slowed.
        learned: the share of the first error that must be gone before a slowing counts.

    Returns:
        The number of epochs trained at the knee, at least 2; None where it is not reached yet.

    Raises:
        ValueError: an error is not finite, or a share is not between 0 and 1.

    Example:
        >>> find_knee([0.9, 0.5, 0.2, 0.19]), find_knee([0.9, 0.5, 0.2])
        (3, None)

    References:
        Nguyen et al., *Changing the Training Data Distribution to Reduce Simplicity Bias Improves In-distribution
        Generalization*, NeurIPS 2024, arXiv:2404.17768.
        Differs from the paper: it takes the epoch from which the decrease of the training error slows, by eye for each
        data set (8 of 200 for CIFAR-10, 5 to 10 % elsewhere); the rule and its shares are ours.
    """
    for name, share in (("slowing", slowing), ("learned", learned)):
        if not 0 < share < 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {share}")
    for epoch, error in enumerate(errors):
        if not math.isfinite(error):
            raise ValueError(f"the training error after {epoch} epochs is {error}: lower the probe's learning rate")
    largest = 0.0
    for epoch in range(1, len(errors)):
        fall = errors[epoch - 1] - errors[epoch]
        largest = max(largest, fall)
        if fall < slowing * largest and errors[0] - errors[epoch] >= learned * errors[0]:
            return epoch
    return None
