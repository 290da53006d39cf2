"""Domains kept apart: what is held out of each, which are never trained on, and how many a method needs."""

from collections.abc import Sized
from itertools import combinations
from typing import Any, cast

import torch
from torch.utils.data import Dataset, Subset

from uumamba.runtime.errors import UsageError
from uumamba.runtime.seeds import generator_for


def require_domains(found: int, needs: str, *, at_least: int = 2) -> None:
    """Refuse too few domains with a sentence.

    Args:
        found: how many there are.
        needs: who needs more, as the subject of the sentence.
        at_least: how many it needs.

    Raises:
        UsageError: there are fewer.

    Example:
        >>> require_domains(1, "The spread of losses over domains")
        Traceback (most recent call last):
        uumamba.runtime.errors.UsageError: The spread of losses over domains needs at least 2 domains, got 1; add data \
of other domains, or take a method that works within one.
    """
    if found < at_least:
        raise UsageError(
            f"{needs} needs at least {at_least} domains, got {found}; add data of other domains, or take a method "
            "that works within one."
        )


def split_domain(
    dataset: Dataset[Any], *, domain: int, trial_seed: int = 0, holdout: float = 0.2
) -> tuple[Subset[Any], Subset[Any]]:
    """Split one domain into what is trained on (in) and what is held out (out), 80 to 20 unless told otherwise.

    The split is a shuffle by a seed hashed from ``(trial_seed, domain)``: the same in every process and for every
    order in which domains are split, another for every domain and trial. Out gets ``int(holdout * n)`` samples.

    Args:
        dataset: map-style, of samples ``(x, y)``.
        domain: the domain's number.
        trial_seed: one for each repetition of an experiment.
        holdout: share that is held out, above 0 and below 1.

    Returns:
        The in split and the out split.

    Raises:
        UsageError: ``holdout`` is out of range, or either split would be empty.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> inside, outside = split_domain(TensorDataset(torch.arange(10)), domain=0)
        >>> len(inside), len(outside), set(inside.indices) & set(outside.indices)
        (8, 2, set())

    References:
        Gulrajani & Lopez-Paz, *In Search of Lost Domain Generalization*, ICLR 2021, arXiv:2007.01434.
        Differs from the paper: the hash is this package's, so splits are not DomainBed's own; and a split that would
        be empty is refused.
    """
    if not 0 < holdout < 1:
        raise UsageError(f"holdout is a share above 0 and below 1, got {holdout}.")
    samples = len(cast(Sized, dataset))
    held = int(samples * holdout)
    if held == 0 or held == samples:
        raise UsageError(
            f"Domain {domain} has {samples} samples, of which a holdout of {holdout} takes {held}; both splits need at "
            "least one."
        )
    order = torch.randperm(samples, generator=generator_for(trial_seed, "domain split", domain)).tolist()
    return Subset(dataset, order[held:]), Subset(dataset, order[:held])


def held_out_domains(domains: int, *, cross_validation: bool = False) -> list[tuple[int, ...]]:
    """Which domains each run of a leave-one-domain-out experiment never trains on.

    Args:
        domains: how many there are.
        cross_validation: also every pair, which the leave-one-domain-out rule of selection chooses by: one of the two
            validates, the other tests.

    Returns:
        One tuple a run.

    Raises:
        UsageError: fewer than 2 domains, or fewer than 3 with ``cross_validation``.

    Example:
        >>> held_out_domains(3)
        [(0,), (1,), (2,)]
        >>> held_out_domains(3, cross_validation=True)
        [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]
    """
    if cross_validation:
        require_domains(domains, "Leave-one-domain-out cross-validation", at_least=3)
    require_domains(domains, "Leaving one domain out")
    alone: list[tuple[int, ...]] = [(domain,) for domain in range(domains)]
    return alone + list(combinations(range(domains), 2)) if cross_validation else alone
