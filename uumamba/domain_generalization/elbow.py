"""Elbow of the training error: the epoch from which it falls slowly, and the outputs at that epoch."""

import math
from collections.abc import Sequence

from uumamba.domain_generalization.probe import ProbeOutputs, check_outputs
from uumamba.runtime.errors import require


def find_elbow(errors: Sequence[float], *, slowing: float = 0.1, learned: float = 0.1) -> int | None:
    r"""Find the first epoch in which the error falls by less than a share of its largest fall so far.

    .. math:: t = \min \Big\{ t \ge 1 : e_{t-1} - e_t < s \cdot \max_{u \le t} (e_{u-1} - e_u)
              \ \text{and}\ e_0 - e_t \ge \ell\, e_0 \Big\}

    with s = ``slowing`` and :math:`\ell` = ``learned``, so that a plateau at the start is not taken for the end of the
    fall. The elbow is known as soon as it is reached and does not depend on later errors. An error that rises has
    slowed; the first epoch never has.

    Args:
        errors: the training error before the first epoch and after each.
        slowing: the share of the largest fall below which the fall has slowed.
        learned: the share of the first error that must be gone before a slowing counts.

    Returns:
        The number of epochs trained at the elbow, at least 2; None where it is not reached yet.

    Raises:
        UsageError: an error is not finite, or a share is not between 0 and 1.

    Example:
        >>> find_elbow([0.9, 0.5, 0.2, 0.19]), find_elbow([0.9, 0.5, 0.2])
        (3, None)

    References:
        Nguyen et al., *Changing the Training Data Distribution to Reduce Simplicity Bias Improves In-distribution
        Generalization*, NeurIPS 2024, arXiv:2404.17768.
        Differs from the paper: it takes the epoch from which the decrease of the training error slows, by eye for each
        data set (8 of 200 for CIFAR-10, 5 to 10 % elsewhere); the rule and its shares are ours.
    """
    for key, share in (("slowing", slowing), ("learned", learned)):
        require(0 < share < 1, key, got=share, expected="a number between 0 and 1")
    fix = "lower the probe's learning rate"
    require(all(map(math.isfinite, errors)), "errors", got=list(errors), expected="finite numbers", fix=fix)
    largest = 0.0
    for epoch in range(1, len(errors)):
        fall = errors[epoch - 1] - errors[epoch]
        largest = max(largest, fall)
        if fall < slowing * largest and errors[0] - errors[epoch] >= learned * errors[0]:
            return epoch
    return None


class Probe:
    """Follows a training until its error falls slowly, and keeps the outputs of that epoch.

    For loops of one's own; :class:`USEFUL` has one inside.

    Args:
        slowing: see :func:`find_elbow`.

    Example:
        >>> import torch
        >>> probe = Probe()
        >>> for error in (0.9, 0.5, 0.2, 0.19):
        ...     vectors = torch.tensor([[error, 1 - error], [0.1, 0.9]])
        ...     ended = probe.add(ProbeOutputs(vectors, -vectors[:, 1].log(), torch.tensor([1, 1]), error, "", 2))
        >>> ended, probe.epoch
        (True, 3)

    Attributes:
        errors: before the first epoch and after each.
        epoch: of the elbow; None until it is reached.
        outputs: at the elbow, or the last ones until it is reached; None before the first.
    """

    def __init__(self, *, slowing: float = 0.1) -> None:
        self.slowing = slowing
        self.errors: list[float] = []
        self.epoch: int | None = None
        self.outputs: ProbeOutputs | None = None

    def add(self, outputs: ProbeOutputs) -> bool:
        """Take the outputs before the first epoch, then after each; return if the elbow is reached.

        Raises:
            UsageError: an output is not finite, or the data are not those of the last pass.
        """
        check_outputs(outputs)
        is_same = self.outputs is None or outputs.fingerprint == self.outputs.fingerprint
        expected = "the same examples in the same order in every pass, without random augmentation"
        require(is_same, "batches", got="other examples than in the last pass", expected=expected)
        if self.epoch is None:
            self.errors.append(outputs.error)
            self.outputs = outputs
            self.epoch = find_elbow(self.errors, slowing=self.slowing)
        return self.epoch is not None
