"""Domains: their splits, their minibatches, and the runs that leave one out."""

from collections.abc import Iterator, Mapping, Sized
from itertools import combinations, count
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from uumamba.runtime.errors import require
from uumamba.runtime.seeds import generator_for


def require_domains(found: int, needs: str, *, at_least: int = 2) -> None:
    """Raise if there are too few domains.

    Args:
        found: number of domains.
        needs: subject of the sentence, the method that needs more.
        at_least: number that it needs.

    Raises:
        UsageError: there are fewer.

    Example:
        >>> require_domains(1, "the spread of losses over domains")
        Traceback (most recent call last):
        uumamba.runtime.errors.UsageError: domains: got 1, expected at least 2 for the spread of losses over domains. \
Fix: add data of other domains, or use a method that works within one.
    """
    fix = "add data of other domains, or use a method that works within one"
    require(found >= at_least, "domains", got=found, expected=f"at least {at_least} for {needs}", fix=fix)


def split_domain(
    dataset: Dataset[Any], *, domain: int, trial_seed: int = 0, holdout: float = 0.2
) -> tuple[Subset[Any], Subset[Any]]:
    """Split one domain into samples to train on (in) and held-out samples (out), 80 to 20 by default.

    The split is a shuffle by a seed hashed from ``(trial_seed, domain)``: the same in every process and for every
    order in which domains are split, another for every domain and trial. Out gets ``int(holdout * n)`` samples.

    Args:
        dataset: map-style, of samples ``(x, y)``.
        domain: the domain's number.
        trial_seed: one for each repetition of an experiment.
        holdout: share of held-out samples, above 0 and below 1.

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
    require(0 < holdout < 1, "holdout", got=holdout, expected="a share above 0 and below 1")
    samples = len(cast(Sized, dataset))
    held = int(samples * holdout)
    require(
        held, "holdout", got=f"{holdout} of {samples} samples in domain {domain}", expected="a share of at least one"
    )
    order = torch.randperm(samples, generator=generator_for(trial_seed, "domain split", domain)).tolist()
    return Subset(dataset, order[held:]), Subset(dataset, order[:held])


def domain_batches(
    datasets: Mapping[int, Dataset[Any]],
    *,
    batch_size: int = 32,
    trial_seed: int = 0,
    first_step: int = 0,
    workers: int = 0,
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Return endless minibatches ``[(x, y), ...]``, one pair a domain, in the order of ``datasets``.

    Samples are drawn with replacement, keyed by ``(trial_seed, domain, step)`` alone, so a run resumed at
    ``first_step`` gets the batches that it would have got, and neither the number of workers nor other domains change
    a domain's batches.

    Args:
        datasets: by the domain's number, map-style, of samples ``(x, y)``; the in splits of the training domains.
        batch_size: samples a domain.
        trial_seed: one for each repetition of an experiment.
        first_step: the step of the first minibatches.
        workers: processes that load each domain.

    Raises:
        UsageError: there is no domain, one is empty, or ``batch_size`` is not positive.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> domain = TensorDataset(torch.zeros(5, 2), torch.arange(5))
        >>> (x, y), _ = next(domain_batches({0: domain, 2: domain}, batch_size=3))
        >>> x.shape, y.shape
        (torch.Size([3, 2]), torch.Size([3]))
    """
    require(datasets, "datasets", got="no domain", expected="at least one to train on")
    require(batch_size >= 1, "batch_size", got=batch_size, expected="at least 1")
    loaders = []
    for domain, dataset in datasets.items():
        samples = len(cast(Sized, dataset))
        require(samples, "datasets", got=f"no sample in domain {domain}", expected="at least one")
        draws = _Draws(samples, batch_size, (trial_seed, "domain batch", domain), first_step)
        generator = generator_for(trial_seed, "workers", domain)  # otherwise iterating draws from torch's global one
        loaders.append(DataLoader(dataset, batch_sampler=draws, num_workers=workers, generator=generator))
    return ([(x, y) for x, y in step] for step in zip(*loaders, strict=True))


def held_out_domains(domains: int, *, cross_validation: bool = False) -> list[tuple[int, ...]]:
    """Return the held-out domains of each run of a leave-one-domain-out experiment, one tuple a run.

    Args:
        domains: number of domains.
        cross_validation: also every pair, for the leave-one-domain-out rule of selection: one of the two validates,
            the other tests.

    Raises:
        UsageError: fewer than 2 domains, or fewer than 3 with ``cross_validation``.

    Example:
        >>> held_out_domains(3)
        [(0,), (1,), (2,)]
        >>> held_out_domains(3, cross_validation=True)
        [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]
    """
    if cross_validation:
        require_domains(domains, "leave-one-domain-out cross-validation", at_least=3)
    require_domains(domains, "leaving one domain out")
    alone: list[tuple[int, ...]] = [(domain,) for domain in range(domains)]
    return alone + list(combinations(range(domains), 2)) if cross_validation else alone


class _Draws:
    """Endless batches of indices, keyed by the step."""

    def __init__(self, samples: int, batch_size: int, key: tuple[int | str, ...], first_step: int) -> None:
        self._samples, self._batch_size, self._key, self._first_step = samples, batch_size, key, first_step

    def __iter__(self) -> Iterator[list[int]]:
        for step in count(self._first_step):
            drawn = torch.randint(self._samples, (self._batch_size,), generator=generator_for(*self._key, step))
            yield drawn.tolist()
