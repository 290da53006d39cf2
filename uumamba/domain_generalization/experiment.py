"""One run of a leave-one-domain-out experiment."""

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from statistics import fmean
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from uumamba.domain_generalization.algorithm import Algorithm
from uumamba.domain_generalization.domains import domain_batches, split_domain
from uumamba.domain_generalization.selection import Record
from uumamba.domain_generalization.swad import SWAD
from uumamba.runtime.errors import require
from uumamba.runtime.network import evaluating
from uumamba.runtime.options import check_options

IGNORED = -100
"""Label that torch's cross entropy ignores by default."""


@check_options
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
    """Train on all domains but ``test_domains``, and record every domain's accuracy.

    Each domain is split by :func:`split_domain`. Training uses the in splits; ``test_domains`` are only scored. There
    is a record every ``record_every`` steps and after the last step, a flat row for a JSON line::

        {"step": 300, "test_envs": [0], "trial_seed": 0, "setting": "", "loss": 0.41,
         "env0_in_acc": 0.83, "env0_out_acc": 0.81, "env0_out_loss": 0.62, "env1_in_acc": ...}

    ``loss`` and other numbers of ``update`` are means over the steps since the last record. Training steps keep the
    mode, training or evaluation, of every module. A domain whose labels are all -100 has scores of NaN, so a domain
    without labels can be held out.

    Args:
        algorithm: network and optimizer; the weights are trained in place, on their device.
        domains: map-style data sets of samples ``(x, y)``; a domain's number is its index.
        test_domains: numbers of the held-out domains, at least one and not all.
        steps: largest number of steps; DomainBed uses 5001.
        record_every: steps between records.
        batch_size: samples per domain and step.
        trial_seed: seed of splits and batches, not of the initial weights.
        holdout: held-out share of each domain.
        setting: name of the hyper-parameters, for model selection.
        swad: weight average, validated with the mean ``out_loss`` of the training domains. The run ends at the end of
            the valley, or with a warning when that loss is not finite.

    Returns:
        The records, in order.

    Raises:
        UsageError: ``test_domains`` is empty, unknown or all domains, a domain is too small to split, or a count is not
            positive.

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
        Differs from the paper: steps are counted from 1, so the first record has trained weights; every draw is keyed
        by trial, domain and step.
    """
    held = sorted({*test_domains})
    require(
        held and {*held} < {*range(len(domains))},
        "test_domains",
        got=held,
        expected=f"some, not all, of 0 to {len(domains) - 1}",
    )
    for key, count in (("steps", steps), ("record_every", record_every)):
        require(count >= 1, key, got=count, expected="at least 1")
    splits = [
        split_domain(domain, domain=number, trial_seed=trial_seed, holdout=holdout)
        for number, domain in enumerate(domains)
    ]
    in_splits, out_splits = (dict(enumerate(split)) for split in zip(*splits, strict=True))
    training = [number for number in in_splits if number not in held]
    batches = domain_batches(
        {number: in_splits[number] for number in training}, batch_size=batch_size, trial_seed=trial_seed
    )
    device = next((param.device for param in algorithm.parameters()), torch.device("cpu"))
    records: list[Record] = []
    updates: list[dict[str, float]] = []  # since the last record
    for step, minibatches in enumerate(islice(batches, steps), start=1):
        updates.append(algorithm.update([(x.to(device), y.to(device)) for x, y in minibatches]))
        if swad is not None:
            swad.after_step(algorithm.net)
        if step % record_every == 0 or step == steps:
            keys = {"step": step, "test_envs": held, "trial_seed": trial_seed, "setting": setting}
            names = dict.fromkeys(name for update in updates for name in update)
            means = {name: fmean(update[name] for update in updates if name in update) for name in names}
            scores = domain_scores(algorithm, in_splits, out_splits)
            records.append(keys | means | scores)
            updates = []
            loss = fmean(scores[f"env{number}_out_loss"] for number in training)
            if swad is not None and _ends_run(swad, loss, step):
                break
    return records


def _ends_run(swad: SWAD, loss: float, step: int) -> bool:
    """Validate SWAD; return whether the valley has ended or training diverged."""
    if not math.isfinite(loss):
        warnings.warn(
            f"The validation loss at step {step} is {loss}: training has diverged, or a training domain has no labels. "
            "The run ends and SWAD keeps its average. Lower the learning rate, or hold out the domain without labels.",
            stacklevel=4,
        )
        return True
    swad.validated(loss)
    return swad.finished


@check_options
def domain_scores(
    net: nn.Module,
    in_splits: Mapping[int, Dataset[Any]],
    out_splits: Mapping[int, Dataset[Any]],
    *,
    batch_size: int = 64,
) -> dict[str, float]:
    """Return accuracies and cross entropies of every domain.

    Keys are ``env{i}_in_acc``, ``env{i}_out_acc`` and ``env{i}_out_loss`` for domain i. The network runs in evaluation
    mode without gradients; afterwards the mode of each module is restored. With spatial labels every pixel counts as
    one label. Labels of -100, ignored by torch's cross entropy, count in no score; a split without other labels has
    scores of NaN.

    Args:
        net: ``net(x)`` returns logits ``(batch, classes, *spatial)``.
        in_splits: training samples by domain number.
        out_splits: held-out samples by domain number.
        batch_size: samples per forward pass.

    Raises:
        UsageError: a split is empty.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> split = TensorDataset(torch.eye(2), torch.tensor([0, 0]))
        >>> domain_scores(nn.Identity(), {0: split}, {0: split})
        {'env0_in_acc': 0.5, 'env0_out_acc': 0.5, 'env0_out_loss': 0.8132...}
    """
    scores: dict[str, float] = {}
    with evaluating(net):
        for domain, split in in_splits.items():
            scores[f"env{domain}_in_acc"] = _score(net, split, batch_size, f"in_splits[{domain}]")[0]
        for domain, split in out_splits.items():
            accuracy, loss = _score(net, split, batch_size, f"out_splits[{domain}]")
            scores |= {f"env{domain}_out_acc": accuracy, f"env{domain}_out_loss": loss}
    return scores


def _score(net: nn.Module, split: Dataset[Any], batch_size: int, name: str) -> tuple[float, float]:
    """Return accuracy and mean cross entropy; NaN without valid labels."""
    device = next((param.device for param in net.parameters()), torch.device("cpu"))
    right, loss, labels, samples = 0, 0.0, 0, 0
    for x, y in DataLoader(split, batch_size=batch_size, generator=torch.Generator()):
        logits, y = net(x.to(device)), y.to(device)
        right += int((logits.argmax(1) == y).sum())
        loss += float(F.cross_entropy(logits, y, ignore_index=IGNORED, reduction="sum"))
        labels += int((y != IGNORED).sum())
        samples += len(x)
    require(samples, name, got="no sample", expected="at least one sample")
    return (right / labels, loss / labels) if labels else (math.nan, math.nan)
