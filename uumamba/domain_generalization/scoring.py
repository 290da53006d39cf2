"""How well a network does on each domain, in DomainBed's words."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from uumamba.runtime.errors import UsageError
from uumamba.runtime.network import evaluating

IGNORED = -100
"""The label that torch's cross entropy leaves out unless told otherwise."""


def domain_scores(
    net: nn.Module,
    in_splits: Mapping[int, Dataset[Any]],
    out_splits: Mapping[int, Dataset[Any]],
    *,
    batch_size: int = 64,
) -> dict[str, float]:
    """``env{i}_in_acc``, ``env{i}_out_acc`` and ``env{i}_out_loss`` (cross entropy) of every domain i.

    The network is asked in evaluation mode and without gradients; afterwards each of its modules is in the mode it was
    in before, so one that was frozen stays so. Labels may have axes: every pixel then counts as one. A label of -100,
    which torch's cross entropy ignores, counts in no score, and scores of a split that has no other are NaN.

    Args:
        net: ``net(x)`` gives logits ``(batch, classes, *spatial)``.
        in_splits: what is trained on, by the domain's number.
        out_splits: what is held out.
        batch_size: samples asked at once.

    Raises:
        UsageError: a split is empty.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> split = TensorDataset(torch.eye(2), torch.tensor([0, 0]))
        >>> domain_scores(nn.Identity(), {0: split}, {0: split})
        {'env0_in_acc': 0.5, 'env0_out_acc': 0.5, 'env0_out_loss': 0.8132...}
    """
    found: dict[str, float] = {}
    with evaluating(net):
        for domain, split in in_splits.items():
            found[f"env{domain}_in_acc"] = _score(net, split, batch_size, f"in split of domain {domain}")[0]
        for domain, split in out_splits.items():
            accuracy, loss = _score(net, split, batch_size, f"out split of domain {domain}")
            found |= {f"env{domain}_out_acc": accuracy, f"env{domain}_out_loss": loss}
    return found


def _score(net: nn.Module, split: Dataset[Any], batch_size: int, name: str) -> tuple[float, float]:
    """Accuracy and mean cross entropy, both means over the labels that count; NaN where none does."""
    device = next((param.device for param in net.parameters()), torch.device("cpu"))
    right, loss, labels, samples = 0, 0.0, 0, 0
    for x, y in DataLoader(split, batch_size=batch_size, generator=torch.Generator()):
        logits, y = net(x.to(device)), y.to(device)
        right += int((logits.argmax(1) == y).sum())
        loss += float(F.cross_entropy(logits, y, ignore_index=IGNORED, reduction="sum"))
        labels += int((y != IGNORED).sum())
        samples += len(x)
    if samples == 0:
        raise UsageError(f"The {name} is empty, so there is nothing to score.")
    return (right / labels, loss / labels) if labels else (math.nan, math.nan)
