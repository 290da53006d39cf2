"""Domain splits, minibatches per domain, and leave-one-domain-out runs."""

from collections.abc import Iterator, Mapping, Sized
from itertools import combinations, count
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from uumamba.runtime.errors import require
from uumamba.runtime.options import BetweenZeroAndOne, PositiveInt, check_options
from uumamba.runtime.seeds import generator_for


def require_domains(found: int, needs: str, *, at_least: int = 2) -> None:
    """Raise if there are too few domains.

    Args:
        found: number of domains.
        needs: the computation that needs the domains, for the message.
        at_least: number of domains that the computation needs.

    Raises:
        UsageError: there are fewer domains.

    Example:
        >>> require_domains(1, "the spread of losses over domains")
        Traceback (most recent call last):
        uumamba.runtime.errors.UsageError: domains: got 1, expected at least 2 for the spread of losses over domains. \
Fix: add data of other domains, or use a method for a single domain.
    """
    require(
        found >= at_least,
        "domains",
        got=found,
        expected=f"at least {at_least} for {needs}",
        fix="add data of other domains, or use a method for a single domain",
    )


@check_options
def split_domain(
    dataset: Dataset[Any], *, domain: int, trial_seed: int = 0, holdout: BetweenZeroAndOne = 0.2
) -> tuple[Subset[Any], Subset[Any]]:
    """Split one domain into training samples (in) and held-out samples (out).

    The split is a shuffle by a seed hashed from ``(trial_seed, domain)``: the same in every process and in every
    order of the domains, different for every domain and trial. The out split gets ``int(holdout * n)`` samples.

    Args:
        dataset: map-style data set of samples ``(x, y)``.
        domain: number of the domain.
        trial_seed: number of the repetition of an experiment.
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
        Differs from the paper: the hash function is another, so the splits differ from DomainBed's; an empty split
        raises an error.
    """
    samples = len(cast(Sized, dataset))
    held = int(samples * holdout)
    require(
        held,
        "holdout",
        got=f"{holdout} of {samples} samples in domain {domain}",
        expected="a share of at least one sample",
    )
    order = torch.randperm(samples, generator=generator_for(trial_seed, "domain split", domain)).tolist()
    return Subset(dataset, order[held:]), Subset(dataset, order[:held])


@check_options
def domain_batches(
    datasets: Mapping[int, Dataset[Any]],
    *,
    batch_size: PositiveInt = 32,
    trial_seed: int = 0,
    first_step: int = 0,
    workers: int = 0,
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Return endless minibatches ``[(x, y), ...]``, one pair per domain.

    Pairs have the order of ``datasets``. Samples are drawn with replacement, keyed by ``(trial_seed, domain, step)``
    only: a run resumed at ``first_step`` gets the same batches as an uninterrupted run, and neither the number of
    workers nor other domains change the batches of a domain.

    Args:
        datasets: in splits of the training domains by domain number, map-style, of samples ``(x, y)``.
        batch_size: samples per domain.
        trial_seed: number of the repetition of an experiment.
        first_step: number of the first step.
        workers: loader processes per domain.

    Raises:
        UsageError: there is no domain, a domain is empty, or ``batch_size`` is not positive.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> domain = TensorDataset(torch.zeros(5, 2), torch.arange(5))
        >>> (x, y), _ = next(domain_batches({0: domain, 2: domain}, batch_size=3))
        >>> x.shape, y.shape
        (torch.Size([3, 2]), torch.Size([3]))
    """
    require(
        datasets,
        "datasets",
        got="no domain",
        expected="at least one training domain",
        fix="pass the data set of each training domain, by domain number",
    )
    loaders = []
    for domain, dataset in datasets.items():
        samples = len(cast(Sized, dataset))
        require(
            samples,
            "datasets",
            got=f"no sample in domain {domain}",
            expected="at least one sample per domain",
            fix=f"leave domain {domain} out, or add samples to its data set",
        )
        sampler = _draw_batches(samples, batch_size, (trial_seed, "domain batch", domain), first_step)
        generator = generator_for(trial_seed, "workers", domain)  # by default a loader draws from the global generator
        loaders.append(DataLoader(dataset, batch_sampler=sampler, num_workers=workers, generator=generator))
    return ([(x, y) for x, y in step] for step in zip(*loaders, strict=True))


@check_options
def held_out_domains(domains: int, *, cross_validation: bool = False) -> list[tuple[int, ...]]:
    """Return the held-out domains per run of a leave-one-domain-out experiment.

    Args:
        domains: number of domains.
        cross_validation: add every pair, for :func:`leave_one_domain_out_validation`: one domain of a pair validates,
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
    sizes = (1, 2) if cross_validation else (1,)
    return [held for size in sizes for held in combinations(range(domains), size)]


def _draw_batches(samples: int, batch_size: int, key: tuple[int | str, ...], first_step: int) -> Iterator[list[int]]:
    """Yield endless batches of indices, keyed by the step."""
    for step in count(first_step):
        yield torch.randint(samples, (batch_size,), generator=generator_for(*key, step)).tolist()
