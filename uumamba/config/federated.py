"""Decentralized training of a run: sites, graph, and unsupported sections."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from uumamba.config.bind import Part, supply
from uumamba.config.learning_rate import build_schedule
from uumamba.config.training import TrainingConfig
from uumamba.data.case import Case, Manifest
from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.options import check_options

if TYPE_CHECKING:
    from uumamba.federated import DFedSAM, Mixing

SiteKey = Literal["domain", "group"]
Sites = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
"""Ids of the training cases and of the validation cases, by site."""


@check_options
@dataclass(frozen=True, kw_only=True)
class FederatedOptions:
    """Options of a run's decentralized training in addition to those of DFedSAM.

    Args:
        sites: property of a case that names its site: ``domain`` (centre or vendor) or ``group`` (diagnosis).
    """

    sites: SiteKey = "domain"


def check_federated(
    part: Part, *, training: TrainingConfig, schedule: Part, parts: Mapping[str, Part | None], objective: str
) -> None:
    """Raise for options that decentralized training does not support.

    Args:
        part: of kind ``federated``.
        training: length and batches of the run.
        schedule: its learning rate.
        parts: other optional sections by key; they must be None.
        objective: name of the objective.

    Raises:
        UsageError: the key of the first such option.
    """
    unsupported: list[tuple[str, Any, Any]] = [
        *((key, given and given.name, None) for key, given in parts.items()),
        ("objective.name", objective, "supervised"),
        ("training.ema_decay", training.ema_decay, None),
        ("training.useful", training.useful and "a mapping", None),
        ("training.compile", training.compile, False),
        ("training.workers", training.workers, 0),
        ("training.samples_at_once", training.samples_at_once, None),
    ]
    for key, found, needed in unsupported:
        expected = "null" if needed is None else needed
        require(found == needed, key, got=found, expected=f"{expected} with the section federated")
    require(
        training.precision != "float16",
        "training.precision",
        got=training.precision,
        expected="auto, float32 or bfloat16 with the section federated",
    )
    require(
        schedule.name != "budget",
        "schedule.name",
        got=schedule.name,
        expected="poly, cosine or constant with the section federated",
    )
    require(
        training.batches_per_epoch % part.local_steps == 0,
        "federated.local_steps",
        got=part.local_steps,
        expected=f"a divisor of training.batches_per_epoch, {training.batches_per_epoch}: an epoch is whole rounds",
    )


def split_sites(manifest: Manifest, training: Sequence[str], validation: Sequence[str], *, by: SiteKey) -> Sites:
    """Split the cases of a fold over the sites.

    Sites are in order of their names. A site may be without validation cases.

    Raises:
        UsageError: a case has no site, there is a single site, or a site has no training case.

    Example:
        >>> cases = tuple(Case(f"{d}{n}", f"{d}{n}", d, image=None) for d in "AB" for n in range(2))
        >>> split_sites(Manifest("toy", "MR", {}, cases), ["A0", "B1"], ["A1"], by="domain")
        {'A': (('A0',), ('A1',)), 'B': (('B1',), ())}
    """
    cases = {case.case_id: case for case in manifest.cases}
    found: dict[str, tuple[list[str], list[str]]] = {}
    for number, ids in enumerate((training, validation)):
        for case_id in ids:
            found.setdefault(_find_site(cases[case_id], by), ([], []))[number].append(case_id)
    require(
        len(found) > 1,
        "federated.sites",
        got=f"{by}, which is {', '.join(found)} in every case",
        expected="a property with at least two values",
        fix="set federated.sites to domain or group, or federated to null",
    )
    for site, (own, _) in found.items():
        require(
            own,
            "federated.sites",
            got=f"{by} {site} without a training case",
            expected="training cases at every site",
            fix="leave its cases out, or choose another fold",
        )
    return {site: (tuple(own), tuple(held)) for site, (own, held) in sorted(found.items())}


def check_site_labels(structures: Mapping[str, int], classes: Mapping[str, set[int] | None]) -> None:
    """Raise if a site lacks a structure that another site has.

    Args:
        structures: label value of each structure.
        classes: label values in the training cases of each site; None if they are unknown.

    Raises:
        UsageError: the first site, with the missing structures.
    """
    known = {site: values for site, values in classes.items() if values is not None}
    present = set[int]().union(*known.values())
    for site, values in known.items():
        missing = [name for name, value in structures.items() if value in present - values]
        require(
            not missing,
            f"site {site}",
            got=f"no voxel of {', '.join(missing)} in its training cases",
            expected="the same structures at every site",
            fix="leave the site out, or annotate the structures there",
        )


def build_topology(part: Part, sizes: Sequence[int]) -> "Mixing":
    """Build the graph of the sites.

    Args:
        part: of kind ``federated``.
        sizes: number of training cases of each site.

    Raises:
        UsageError: the graph does not exist for so many sites.
    """
    try:
        return cast("Mixing", supply(part.topology.bind(), clients=len(sizes), sizes=list(sizes)))
    except UsageError as error:
        raise error.within("federated.topology") from None


def build_federated(part: Part, sizes: Sequence[int], **supplied: Any) -> "DFedSAM":
    """Build the method of a run.

    Args:
        part: of kind ``federated``.
        sizes: number of training cases of each site.
        supplied: objective, optimizer, and other arguments that the run supplies.
    """
    try:
        return cast("DFedSAM", part.bind()(**supplied, topology=build_topology(part, sizes)))
    except UsageError as error:
        raise error.within("federated") from None


def build_lr_factor(schedule: Part, *, training: TrainingConfig, local_steps: int) -> Callable[[int], float]:
    """Build the learning rate factor of each round from a schedule.

    The factor of a round is the schedule's at the round's first step.
    """
    probe = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    steps = training.epochs * training.batches_per_epoch
    made = build_schedule(schedule, probe, epochs=training.epochs, batches_per_epoch=training.batches_per_epoch)
    factors = []
    for step in range(steps):
        if step % local_steps == 0:
            factors.append(float(probe.param_groups[0]["lr"]))
        probe.step()
        made.step()
    return factors.__getitem__


def _find_site(case: Case, by: SiteKey) -> str:
    found = case.domain if by == "domain" else case.group
    require(
        found,
        "federated.sites",
        got=f"{by}, which case {case.case_id} does not have",
        expected="a property of every case",
        fix="set federated.sites to domain",
    )
    return str(found)
