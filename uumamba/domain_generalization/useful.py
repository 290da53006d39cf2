"""USEFUL: find the examples that a network learns slowly, show them twice, and train from scratch."""

import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from uumamba.domain_generalization.clustering import find_slow
from uumamba.domain_generalization.probe import ProbeOutputs, check_outputs, tensor_bytes
from uumamba.domain_generalization.slow_examples import SlowExamples, UpsampledSampler
from uumamba.runtime.errors import require
from uumamba.runtime.seeds import key_to_seed, preserve_random_state, seed_everything

TrainEpoch = Callable[[UpsampledSampler], None]
Start = Callable[[], tuple[nn.Module, TrainEpoch]]
"""Builds a network, and a function that trains it for an epoch on the indices of a sampler."""


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


class USEFUL:
    r"""Upsampling of slowly learned examples, found by a short training.

    1. Probe: train the result of ``start()`` on the original data until the epoch t in which its error falls slowly.
    2. In each class, split the outputs at t by k-means (k = 2); the cluster with the higher mean loss is slow.
    3. Call ``start()`` again under the same seed and train on every example once and every slow one ``factor`` times
       an epoch.

    The cost is t epochs, a forward pass over the data before and after each of them, and then as many more steps an
    epoch as there are slow examples; a schedule by steps must count ``len(sampler)``.

    Edge cases. An error that never slows within ``most_epochs`` takes the probe's last epoch, with a warning. A data
    set in which no class can be split (see :func:`find_slow`) has no slow examples, so the rest is plain training, with
    a warning. With several processes let one find the examples and the others read its file: sums in another order
    could give them other examples.

    Args:
        start: builds network and optimizer, and returns the network with a function that trains it for one epoch on
            the indices of a sampler. It must build both again in each call, from the global generators, which are
            seeded before the call, or from seeds of its own.
        probe: the network's outputs on the data set; see :func:`probe_classification`. Its random draws change no draw
            of the training.
        seed: of initialisation, order and clusters.
        most_epochs: the most of the probe; the paper spends a tenth of a run.
        slowing: the share of the error's largest fall in an epoch below which the fall has slowed.
        factor: occurrences of a slow example in an epoch.

    Raises:
        UsageError: a number is out of range.

    Example:
        >>> from functools import partial
        >>> from uumamba.domain_generalization import probe_classification
        >>> x, y = torch.randn(60, 5), torch.arange(60) % 3
        >>> x[range(60), y] += torch.where(torch.rand(60) < 0.9, 6.0, 0.5)  # a tenth lacks the easy feature
        >>> def start():
        ...     net = nn.Linear(5, 3)
        ...     optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        ...     def train_epoch(sampler):
        ...         for ids in torch.tensor(list(sampler)).split(8):
        ...             optimizer.zero_grad()
        ...             nn.functional.cross_entropy(net(x[ids]), y[ids]).backward()
        ...             optimizer.step()
        ...     return net, train_epoch
        >>> useful = USEFUL(start, partial(probe_classification, batches=[(x, y)]), seed=0)
        >>> found = useful.find()
        >>> net, train_epoch = useful.restart()
        >>> sampler = useful.sampler(found)
        >>> for epoch in range(5):
        ...     sampler.set_epoch(epoch)
        ...     train_epoch(sampler)
        >>> len(sampler) == 60 + len(found.slow)
        True

    References:
        Nguyen et al., *Changing the Training Data Distribution to Reduce Simplicity Bias Improves In-distribution
        Generalization*, NeurIPS 2024, arXiv:2404.17768.
        Differs from the paper: the epoch t is found by a rule (see :func:`find_elbow`), not by eye; units other than
        classified images are an extension of ours (see :func:`probe_segmentation`).
    """

    def __init__(
        self,
        start: Start,
        probe: Callable[[nn.Module], ProbeOutputs],
        *,
        seed: int = 0,
        most_epochs: int = 20,
        slowing: float = 0.1,
        factor: int = 2,
    ) -> None:
        require(most_epochs >= 2, "most_epochs", got=most_epochs, expected="at least 2")
        require(0 < slowing < 1, "slowing", got=slowing, expected="a number between 0 and 1")
        require(factor >= 1, "factor", got=factor, expected="at least 1")
        self.start, self.probe = start, probe
        self.seed, self.most_epochs, self.slowing, self.factor = seed, most_epochs, slowing, factor
        self._initial = ""

    def find(self) -> SlowExamples:
        """Train the probe and find the slow examples.

        Raises:
            UsageError: an output is not finite, or the data changed between two passes.
        """
        net, train_epoch = self.restart()
        probe = Probe(slowing=self.slowing)
        outputs = self._run_probe(net, 0)
        probe.add(outputs)
        sampler = UpsampledSampler(len(outputs.losses), seed=self.seed)
        for epoch in range(self.most_epochs):
            sampler.set_epoch(epoch)
            train_epoch(sampler)
            outputs = self._run_probe(net, epoch + 1)
            if probe.add(outputs):
                break
        else:
            warnings.warn(
                f"the training error did not slow within {self.most_epochs} epochs, so slow examples are those of the "
                "last; give more epochs or a higher learning rate",
                stacklevel=2,
            )
        found = find_slow(outputs, seed=self.seed)
        if not found.slow:
            notes = "; ".join(f"class {each.group}: {each.note}" for each in found.groups)
            warnings.warn(f"no class has slow examples, so this is plain training: {notes}", stacklevel=2)
        settings = {"most_epochs": self.most_epochs, "slowing": self.slowing, "factor": self.factor} | found.settings
        epoch = self.most_epochs if probe.epoch is None else probe.epoch
        return replace(found, epoch=epoch, errors=tuple(probe.errors), settings=settings)

    def _run_probe(self, net: nn.Module, epochs: int) -> ProbeOutputs:
        """Return the outputs; a loader that draws its seed must not change the dropout of later epochs."""
        with preserve_random_state({param.device for param in net.parameters()}):
            seed_everything(key_to_seed(self.seed, "answers", epochs))  # else a shuffle would be the same in each pass
            return self.probe(net)

    def restart(self) -> tuple[nn.Module, TrainEpoch]:
        """Return a network with the first weights, and its training function.

        Seeds the global generators of Python, NumPy and torch.

        Raises:
            UsageError: ``start()`` returned other weights than in an earlier call.
        """
        seed_everything(self.seed)
        net, train_epoch = self.start()
        tensors = {name: value for name, value in net.state_dict().items() if isinstance(value, torch.Tensor)}
        named_bytes = (name.encode() + tensor_bytes(value) for name, value in tensors.items())
        initial = hashlib.sha256(b"".join(named_bytes)).hexdigest()
        is_same = self._initial in ("", initial)
        fix = "build the network inside start(), from the global generators or a seed of its own"
        require(is_same, "start", got="other initial weights", expected="the same for the same seed", fix=fix)
        self._initial = initial
        return net, train_epoch

    def sampler(self, found: SlowExamples, *, rank: int = 0, replicas: int = 1) -> UpsampledSampler:
        """Return a sampler of every index once and every slow one ``factor`` times, in an order of this seed."""
        return UpsampledSampler(
            found.size, found.slow, factor=self.factor, seed=self.seed, rank=rank, replicas=replicas
        )
