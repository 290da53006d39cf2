"""USEFUL: find the examples that a network learns slowly, show them twice, and train from scratch."""

import warnings
from collections.abc import Callable
from dataclasses import replace

from torch import nn

from uumamba.domain_generalization.answers import Answers
from uumamba.domain_generalization.fingerprint import fingerprint_of_state
from uumamba.domain_generalization.knee import find_knee
from uumamba.domain_generalization.slow_examples import SlowExamples, check_answers, find_slow
from uumamba.domain_generalization.upsampling import UpsampledSampler
from uumamba.runtime.seeds import key_to_seed, preserve_random_state, seed_everything

TrainEpoch = Callable[[UpsampledSampler], None]
Start = Callable[[], tuple[nn.Module, TrainEpoch]]
"""Builds a network, and a function that trains it for an epoch on the indices that a sampler yields."""


class Probe:
    """Watches a training until its error falls slowly, and keeps the answers of that moment.

    For loops of one's own; :class:`USEFUL` has one inside.

    Args:
        slowing: see :func:`find_knee`.

    Example:
        >>> import torch
        >>> probe = Probe()
        >>> for error in (0.9, 0.5, 0.2, 0.19):
        ...     outputs = torch.tensor([[error, 1 - error], [0.1, 0.9]])
        ...     ended = probe.add(Answers(outputs, -outputs[:, 1].log(), torch.tensor([1, 1]), error, "", 2))
        >>> ended, probe.epoch
        (True, 3)

    Attributes:
        errors: before the first epoch and after each.
        epoch: the knee; None until it is reached.
        answers: those at the knee, or the last ones until it is reached; None before the first.
    """

    def __init__(self, *, slowing: float = 0.1) -> None:
        self.slowing = slowing
        self.errors: list[float] = []
        self.epoch: int | None = None
        self.answers: Answers | None = None

    def add(self, answers: Answers) -> bool:
        """Take the answers before the first epoch, then after each; True once the knee is reached.

        Raises:
            ValueError: an answer is not finite, or the data are not those of the last pass.
        """
        check_answers(answers)
        if self.answers is not None and answers.fingerprint != self.answers.fingerprint:
            raise ValueError(
                "the examples changed between two passes of the probe: it must see them in the same order each time "
                "(no shuffling, no dropped last batch) and without random augmentation"
            )
        if self.epoch is None:
            self.errors.append(answers.error)
            self.answers = answers
            self.epoch = find_knee(self.errors, slowing=self.slowing)
        return self.epoch is not None


class USEFUL:
    r"""Trains a few epochs to see what is learned slowly, then again from scratch with those examples shown twice.

    1. A probe: ``start()`` is trained on the original data until the epoch t in which its error falls slowly.
    2. In each class the outputs at t are split by k-means (k = 2); the cluster with the higher mean loss is slow.
    3. ``start()`` is called anew under the same seed and trained on every example once and every slow one
       ``factor`` times an epoch.

    The cost is t epochs, a forward pass over the data before and after each of them, and then as many more steps an
    epoch as there are slow examples; a schedule by steps must count ``len(sampler)``.

    Edge cases. An error that never slows within ``most_epochs`` leaves the probe's last epoch, with a warning. A data
    set in which no class can be split (see :func:`find_slow`) has no slow examples, and what remains is plain training,
    with a warning. With several processes let one find and the others read its file: sums in another order could
    tell them other examples.

    Args:
        start: builds network and optimizer, and returns the network with a function that trains it for one epoch on
            the indices of a sampler. It must build both anew at each call, from the global generators, which are
            seeded before it is called, or from seeds of its own.
        answers: the network's answers on the data set; see :func:`classification_answers`. What it draws from the
            global generators changes no draw of the training.
        seed: of initialisation, order and clusters.
        most_epochs: of the probe; a tenth of a run is what the paper spends.
        slowing: the share of the largest fall of the error in an epoch below which the fall has slowed.
        factor: how often a slow example is shown an epoch.

    Raises:
        ValueError: a number makes no sense.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from uumamba.domain_generalization import classification_answers
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
        >>> useful = USEFUL(start, partial(classification_answers, batches=[(x, y)]), seed=0)
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
        Differs from the paper: the epoch t is found by a rule (see :func:`find_knee`), not by eye; units other than
        classified images are an extension of ours (see :func:`segmentation_answers`).
    """

    def __init__(
        self,
        start: Start,
        answers: Callable[[nn.Module], Answers],
        *,
        seed: int = 0,
        most_epochs: int = 20,
        slowing: float = 0.1,
        factor: int = 2,
    ) -> None:
        if most_epochs < 2:
            raise ValueError(f"most_epochs must be at least 2 for a knee to be seen, got {most_epochs}")
        if not 0 < slowing < 1:
            raise ValueError(f"slowing must lie between 0 and 1, got {slowing}")
        if factor < 1:
            raise ValueError(f"factor must be at least 1, got {factor}")
        self.start, self.answers = start, answers
        self.seed, self.most_epochs, self.slowing, self.factor = seed, most_epochs, slowing, factor
        self._initial: str | None = None

    def find(self) -> SlowExamples:
        """Train the probe and tell the slow examples.

        Raises:
            ValueError: an answer is not finite, or the data changed between two passes.
        """
        net, train_epoch = self.restart()
        probe = Probe(slowing=self.slowing)
        answers = self._asked(net, 0)
        probe.add(answers)
        sampler = UpsampledSampler(len(answers.losses), seed=self.seed)
        for epoch in range(self.most_epochs):
            sampler.set_epoch(epoch)
            train_epoch(sampler)
            answers = self._asked(net, epoch + 1)
            if probe.add(answers):
                break
        else:
            warnings.warn(
                f"the training error did not slow within {self.most_epochs} epochs, so slow examples are those of the "
                "last; give more epochs or a higher learning rate",
                stacklevel=2,
            )
        found = find_slow(answers, seed=self.seed)
        if not found.slow:
            warnings.warn(
                "no class has slow examples, so nothing is shown twice and this is plain training: "
                + "; ".join(f"class {each.group}: {each.note}" for each in found.groups),
                stacklevel=2,
            )
        settings = {"most_epochs": self.most_epochs, "slowing": self.slowing, "factor": self.factor} | found.settings
        epoch = self.most_epochs if probe.epoch is None else probe.epoch
        return replace(found, epoch=epoch, errors=tuple(probe.errors), settings=settings)

    def _asked(self, net: nn.Module, epochs: int) -> Answers:
        """The answers; a loader that draws its seed must not move the dropout of the epochs that follow."""
        with preserve_random_state({param.device for param in net.parameters()}):
            seed_everything(key_to_seed(self.seed, "answers", epochs))  # else each pass shuffles alike, and unnoticed
            return self.answers(net)

    def restart(self) -> tuple[nn.Module, TrainEpoch]:
        """A network as at the very start, and what trains it.

        Seeds the global generators of Python, NumPy and torch.

        Raises:
            ValueError: ``start()`` gave other weights than at an earlier call.
        """
        seed_everything(self.seed)
        net, train_epoch = self.start()
        initial = fingerprint_of_state(net.state_dict())
        if self._initial not in (None, initial):
            raise ValueError(
                "start() gave other initial weights than before, though the seed is the same: build the network inside "
                "it, and draw from the global generators or from a seed of your own"
            )
        self._initial = initial
        return net, train_epoch

    def sampler(self, found: SlowExamples, *, rank: int = 0, replicas: int = 1) -> UpsampledSampler:
        """Every index once, every slow one ``factor`` times, in an order of this seed."""
        return UpsampledSampler(
            found.size, found.slow, factor=self.factor, seed=self.seed, rank=rank, replicas=replicas
        )
