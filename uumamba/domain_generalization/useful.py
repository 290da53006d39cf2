"""USEFUL: upsampling of slowly learned examples, then training from scratch."""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from uumamba.domain_generalization.clustering import find_slow
from uumamba.domain_generalization.probe import ProbeOutputs, check_outputs, tensor_bytes
from uumamba.domain_generalization.slow_examples import FACTOR, SlowExamples, UpsampledSampler
from uumamba.runtime.errors import require
from uumamba.runtime.options import AtLeastTwo, BetweenZeroAndOne, PositiveInt, check_options
from uumamba.runtime.seeds import key_to_seed, preserve_random_state, seed_everything

SLOWING = 0.1

TrainEpoch = Callable[[UpsampledSampler], None]
Start = Callable[[], tuple[nn.Module, TrainEpoch]]
"""Function that builds a network and a function to train the network for an epoch on the indices of a sampler."""


@check_options
def find_elbow(
    errors: Sequence[float], *, slowing: BetweenZeroAndOne = SLOWING, learned: BetweenZeroAndOne = 0.1
) -> int | None:
    r"""Find the first epoch of slow error decrease.

    .. math:: t = \min \Big\{ t \ge 1 : e_{t-1} - e_t < s \cdot \max_{u \le t} (e_{u-1} - e_u)
              \ \text{and}\ e_0 - e_t \ge \ell\, e_0 \Big\}

    with s = ``slowing`` and :math:`\ell` = ``learned``. The second condition skips a plateau at the start. The elbow is
    the first epoch whose decrease is less than a share of the largest decrease so far; later errors do not change the
    elbow. An increase of the error is also slow. The first epoch is never slow.

    Args:
        errors: training error before the first epoch and after each epoch.
        slowing: share of the largest decrease below which a decrease is slow.
        learned: share of the first error that must be learned before the elbow.

    Returns:
        The number of epochs trained at the elbow, at least 2; None before the elbow.

    Raises:
        UsageError: an error is not finite, or a share is not between 0 and 1.

    Example:
        >>> find_elbow([0.9, 0.5, 0.2, 0.19]), find_elbow([0.9, 0.5, 0.2])
        (3, None)

    References:
        Nguyen et al., *Changing the Training Data Distribution to Reduce Simplicity Bias Improves In-distribution
        Generalization*, NeurIPS 2024, arXiv:2404.17768.
        Differs from the paper: there the epoch of the slower decrease is chosen by eye for each data set (8 of 200 for
        CIFAR-10, 5 to 10 % elsewhere); the rule and its shares are this project's.
    """
    largest = 0.0
    for epoch in range(1, len(errors)):
        decrease = errors[epoch - 1] - errors[epoch]
        largest = max(largest, decrease)
        if decrease < slowing * largest and errors[0] - errors[epoch] >= learned * errors[0]:
            return epoch
    return None


class Probe:
    """Training errors up to the elbow, and the outputs at the elbow.

    For custom training loops; :class:`USEFUL` includes a probe.

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
        errors: training error before the first epoch and after each epoch.
        epoch: epoch of the elbow; None before the elbow.
        outputs: outputs at the elbow, before the elbow the latest outputs; None at the start.
    """

    @check_options
    def __init__(self, *, slowing: BetweenZeroAndOne = SLOWING) -> None:
        self.slowing = slowing
        self.errors: list[float] = []
        self.epoch: int | None = None
        self.outputs: ProbeOutputs | None = None

    def add(self, outputs: ProbeOutputs) -> bool:
        """Add an epoch's outputs; return whether the elbow is reached.

        The first call is before the first epoch.

        Raises:
            UsageError: an output is not finite, or the data differ from the last pass.
        """
        check_outputs(outputs)
        require(
            self.outputs is None or outputs.fingerprint == self.outputs.fingerprint,
            "batches",
            got="examples that differ from the last pass",
            expected="the same examples in the same order in every pass",
            fix="remove shuffling and random augmentation",
        )
        if self.epoch is None:
            self.errors.append(outputs.error)
            self.outputs = outputs
            self.epoch = find_elbow(self.errors, slowing=self.slowing)
        return self.epoch is not None


class USEFUL:
    r"""Upsampling of slowly learned examples, found by a short training.

    1. Probe: train the result of ``start()`` on the original data until the elbow t of the error.
    2. In each class, split the outputs at t by k-means (k = 2); the cluster with the higher mean loss is slow.
    3. Call ``start()`` again under the same seed and train with every slow example ``factor`` times per epoch and every
       other example once.

    The cost is t epochs, t + 1 forward passes over the data, and more steps per epoch for the copies of slow examples;
    a schedule by steps must use ``len(sampler)``.

    **Edge cases.** Without an elbow within ``most_epochs``, the probe's last epoch is used, with a warning. If no class
    can be split (see :func:`find_slow`), there are no slow examples and the training is plain, with a warning. With
    several processes, find the examples in one process and read its file in the others: sums in another order could
    give other examples.

    Args:
        start: function that builds network and optimizer, and returns the network with a function to train the network
            for one epoch on the indices of a sampler. Each call must build both again, from the global generators
            (seeded before the call) or from own seeds.
        probe: function that returns the network's outputs on the data set; see :func:`probe_classification`. Its
            random draws do not change the training.
        seed: seed of initialisation, order and clusters.
        most_epochs: largest number of epochs of the probe; the paper uses a tenth of a run.
        slowing: see :func:`find_elbow`.
        factor: occurrences of a slow example per epoch.

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
        Differs from the paper: the epoch t is found by a rule (see :func:`find_elbow`), not by eye; segmented units are
        an extension of this project (see :func:`probe_segmentation`).
    """

    @check_options
    def __init__(
        self,
        start: Start,
        probe: Callable[[nn.Module], ProbeOutputs],
        *,
        seed: int = 0,
        most_epochs: AtLeastTwo = 20,
        slowing: BetweenZeroAndOne = SLOWING,
        factor: PositiveInt = FACTOR,
    ) -> None:
        self.start, self.probe = start, probe
        self.seed, self.most_epochs, self.slowing, self.factor = seed, most_epochs, slowing, factor
        self._initial = ""

    def find(self) -> SlowExamples:
        """Train the probe and find the slow examples.

        Raises:
            UsageError: an output is not finite, or the data differ between two passes.
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
                f"The training error has no elbow within {self.most_epochs} epochs; slow examples are from the last "
                "epoch. Set more epochs or a higher learning rate.",
                stacklevel=2,
            )
        found = find_slow(outputs, seed=self.seed)
        if not found.slow:
            notes = "; ".join(f"class {each.group}: {each.note}" for each in found.groups)
            warnings.warn(f"No class has slow examples, so the training is plain: {notes}.", stacklevel=2)
        settings = {"most_epochs": self.most_epochs, "slowing": self.slowing, "factor": self.factor} | found.settings
        epoch = self.most_epochs if probe.epoch is None else probe.epoch
        return replace(found, epoch=epoch, errors=tuple(probe.errors), settings=settings)

    def _run_probe(self, net: nn.Module, epochs: int) -> ProbeOutputs:
        """Return the outputs without a change of the training's random draws."""
        with preserve_random_state({param.device for param in net.parameters()}):
            # A key per pass: a loader that shuffles by mistake then has another order in each pass, and is detected.
            seed_everything(key_to_seed(self.seed, "answers", epochs))
            return self.probe(net)

    def restart(self) -> tuple[nn.Module, TrainEpoch]:
        """Return a network with the initial weights, and its training function.

        Seeds the global generators of Python, NumPy and torch.

        Raises:
            UsageError: ``start()`` returned weights that differ from an earlier call.
        """
        seed_everything(self.seed)
        made = self.start()
        is_pair = isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module) and callable(made[1])
        require(
            is_pair,
            "start",
            got=f"a function that returns {type(made).__name__}",
            expected="a function that returns (net, train_epoch)",
            fix="return net, train_epoch, where train_epoch(sampler) trains net for one epoch",
        )
        net, train_epoch = made
        tensors = {name: value for name, value in net.state_dict().items() if isinstance(value, torch.Tensor)}
        named_bytes = b"".join(name.encode() + tensor_bytes(value) for name, value in tensors.items())
        initial = hashlib.sha256(named_bytes).hexdigest()
        require(
            self._initial in ("", initial),
            "start",
            got="initial weights that differ from the first call",
            expected="the same initial weights in every call",
            fix="build the network inside start(), with torch's global random generator or a fixed seed",
        )
        self._initial = initial
        return net, train_epoch

    def sampler(self, found: SlowExamples, *, rank: int = 0, replicas: int = 1) -> UpsampledSampler:
        """Return the sampler of the final training; see :class:`UpsampledSampler`."""
        return UpsampledSampler(
            found.size, found.slow, factor=self.factor, seed=self.seed, rank=rank, replicas=replicas
        )
