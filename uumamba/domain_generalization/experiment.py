"""One run of a leave-one-domain-out experiment: train on some domains, write down accuracy on all."""

import math
import warnings
from collections.abc import Collection, Iterable, Sequence
from statistics import fmean
from typing import Any

import torch
from torch.utils.data import Dataset

from uumamba.domain_generalization.algorithm import Algorithm
from uumamba.domain_generalization.batches import domain_batches
from uumamba.domain_generalization.domains import split_domain
from uumamba.domain_generalization.scoring import domain_scores
from uumamba.domain_generalization.selection import Record
from uumamba.domain_generalization.swad import SWAD
from uumamba.runtime.errors import UsageError


def train_and_record(
    algorithm: Algorithm,
    domains: Sequence[Dataset[Any]],
    *,
    test_domains: Collection[int],
    steps: int = 5001,
    record_every: int = 300,
    batch_size: int = 32,
    trial_seed: int = 0,
    holdout: float = 0.2,
    setting: str = "",
    swad: SWAD | None = None,
) -> list[Record]:
    """Train on the in splits of all domains but ``test_domains``, and record accuracy on every split.

    Each domain is split by :func:`split_domain`; ``test_domains`` are scored and never trained on. A record is written
    every ``record_every`` steps and after the last, a flat row that goes into a JSON line as it is::

        {"step": 300, "test_envs": [0], "trial_seed": 0, "setting": "", "loss": 0.41,
         "env0_in_acc": 0.83, "env0_out_acc": 0.81, "env0_out_loss": 0.62, "env1_in_acc": ...}

    where ``loss`` and other numbers of ``update`` are means over the steps since the record before. In steps, each
    module of ``algorithm`` is in the mode, training or evaluation, in which it was passed. A domain whose labels are
    all -100 has scores of NaN, so one without labels can be held out.

    Args:
        algorithm: its weights are trained in place, on the device where they are.
        domains: map-style datasets of samples ``(x, y)``; the number of a domain is its place here.
        test_domains: numbers of the domains that are held out, at least one and not all.
        steps: at most; 5001 is DomainBed's.
        record_every: steps between records.
        batch_size: samples a domain and step.
        trial_seed: of splits and batches. The network's initial weights are the caller's.
        holdout: share of each domain that is held out.
        setting: the name of the hyper-parameters, which rules of selection choose among.
        swad: averages the weights; it is told the mean ``out_loss`` of the training domains, and ends the run when the
            valley has ended, or with a warning when that loss is not finite.

    Returns:
        The records, in order.

    Raises:
        UsageError: ``test_domains`` are not some of the domains or are all of them, a domain is too small to split, or
            a count is not positive.

    Example:
        >>> from functools import partial
        >>> from torch.utils.data import TensorDataset
        >>> from uumamba.optim import Plain
        >>> domains = [TensorDataset(torch.randn(10, 2), torch.zeros(10, dtype=torch.long)) for _ in range(2)]
        >>> net = torch.nn.Linear(2, 2)
        >>> algorithm = Algorithm(net, Plain(net.parameters(), partial(torch.optim.SGD, lr=0.1)))
        >>> records = train_and_record(algorithm, domains, test_domains=[1], steps=4, record_every=2)
        >>> [(record["step"], record["test_envs"]) for record in records]
        [(2, [1]), (4, [1])]

    References:
        Gulrajani & Lopez-Paz, *In Search of Lost Domain Generalization*, ICLR 2021, arXiv:2007.01434.
        Differs from the paper: a step counts when it is done, so the first record has trained weights; every draw is
        keyed by trial, domain and step.
    """
    held = _checked(test_domains, len(domains))
    if min(steps, record_every) < 1:
        raise UsageError(f"steps and record_every must be at least 1, got {steps} and {record_every}.")
    splits = [
        split_domain(domain, domain=number, trial_seed=trial_seed, holdout=holdout)
        for number, domain in enumerate(domains)
    ]
    in_splits, out_splits = (dict(enumerate(side)) for side in zip(*splits, strict=True))
    training = [number for number in in_splits if number not in held]
    batches = domain_batches(
        {number: in_splits[number] for number in training}, batch_size=batch_size, trial_seed=trial_seed
    )
    device = next((param.device for param in algorithm.parameters()), torch.device("cpu"))
    records: list[Record] = []
    seen: list[dict[str, float]] = []
    for step, minibatches in enumerate(batches, start=1):
        seen.append(algorithm.update([(x.to(device), y.to(device)) for x, y in minibatches]))
        if swad is not None:
            swad.after_step(algorithm.net)
        if step % record_every == 0 or step == steps:
            names = dict.fromkeys(name for each in seen for name in each)
            numbers = {name: fmean(each[name] for each in seen if name in each) for name in names}
            scores = domain_scores(algorithm, in_splits, out_splits)
            where = {"step": step, "test_envs": held, "trial_seed": trial_seed, "setting": setting}
            records.append(where | numbers | scores)
            seen = []
            if swad is not None and _ends(swad, fmean(scores[f"env{number}_out_loss"] for number in training), step):
                break
        if step == steps:
            break
    return records


def _ends(swad: SWAD, loss: float, step: int) -> bool:
    """Tell it the validation loss; whether the run is over, its valley's end or its own."""
    if not math.isfinite(loss):
        warnings.warn(
            f"The validation loss at step {step} is {loss}: training has diverged, or a domain that is trained on has "
            "no labels, so the run ends here. SWAD keeps what it has averaged before; lower the learning rate, or hold "
            "that domain out.",
            stacklevel=3,
        )
        return True
    swad.validated(loss)
    return swad.finished


def _checked(test_domains: Collection[int], domains: int) -> list[int]:
    if not isinstance(test_domains, Iterable):
        raise UsageError(
            f"test_domains must be a list of domains' numbers, got {test_domains!r}; [0] holds out domain 0 alone."
        )
    held = sorted(set(test_domains))
    if not held or not set(held) < set(range(domains)):
        raise UsageError(
            f"test_domains must be some of the {domains} domains 0 to {domains - 1} and leave at least one to train "
            f"on, got {held}."
        )
    return held
