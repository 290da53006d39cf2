"""Jobs of a run, listed from headers before any file is written.

:func:`list_jobs` raises every error of configuration, options and folders; ``run``, ``prepare`` and ``train`` then
execute the jobs.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path

import torch

from uumamba.config import RunConfig
from uumamba.config.automatic import AUTO, NORMALISATION, SPACING
from uumamba.config.case_split import EVERY_FOLD, split_cases
from uumamba.config.federated import Sites, build_federated, check_site_labels, split_sites
from uumamba.config.label_checks import check_labels
from uumamba.config.stored_config import complete_run
from uumamba.config.track import check_trackers
from uumamba.config.training import resolve_channels_last
from uumamba.data.case import Manifest
from uumamba.data.label_scheme import LabelScheme
from uumamba.data.loader import share_batch
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines.datasets import RawFolder, is_dataset
from uumamba.pipelines.mirrored_sides import MirroredSides, check_sides
from uumamba.pipelines.models import load_initial_weights
from uumamba.pipelines.run_layout import (
    FoldFolder,
    fold_folders,
    newest_checkpoint,
    select_folders,
    stored_run,
)
from uumamba.pipelines.slow_cases import SlowCases
from uumamba.runtime.errors import require
from uumamba.runtime.observer import to_stderr
from uumamba.training.run_folder import check_new_run, check_same_config


@dataclass(frozen=True)
class Job:
    """Training of one fold with one seed.

    Args:
        config: the run's configuration with the job's seed.
        folder: the fold folder, which may not exist yet.
        training_ids: ids of the training cases, in the order of the manifest.
        validation_ids: ids of the validation cases; empty for fold ``"all"``.
        sides: left/right axes and swapped labels; None if no structure has a side.
        sites: training and validation cases of each site of a decentralized training; empty for one place.
    """

    config: RunConfig
    folder: FoldFolder
    training_ids: tuple[str, ...]
    validation_ids: tuple[str, ...]
    sides: MirroredSides | None
    sites: Sites = field(default_factory=dict)


def list_jobs(
    config: RunConfig,
    cases: RawFolder | PreparedFolder,
    *,
    fold: str,
    out: Path | str,
    seeds: Sequence[int] | None = None,
    resume: bool = False,
    force: bool = False,
    init: str | None = None,
    device: str | None = None,
    ranks: int = 1,
) -> list[Job]:
    """List the trainings of a run, and raise every configuration error.

    Only headers are read, and nothing is written. The configuration is checked before the cases are read.

    Args:
        config: the run.
        cases: raw or prepared folder.
        fold: ``"0"`` to ``"4"``, ``"all"`` (no validation) or ``"cv"`` (every fold that the data set has).
        out: the run folder.
        seeds: one job per fold and seed; None takes the configuration's seed.
        resume: folders may have checkpoints.
        force: the run may have been started with another configuration.
        init: a model whose weights the network starts from; they are read as well.
        device: name of the training device in torch, or several; None does not check the device.
        ranks: number of processes that train together.

    Raises:
        UsageError: any key of the configuration or option is wrong or still ``auto``, a package of a tracker is
            missing, the fold is unknown or has no cases, a domain is unknown or cannot be split as configured, patches
            would be mirrored left to right although structures have sides, the cases are of another data set or recipe,
            the index file is of other cases, a part of the run does not fit the data set's regions, the model of
            ``init`` is missing or does not fit, the batch cannot be split equally over the ranks, there are more
            devices than jobs, a checkpoint exists and ``resume`` is off, the run was started with another
            configuration, or quantization or freezing of a new run would only start after the last step.
    """
    require(
        not config.automatic,
        ", ".join(config.automatic),
        got="auto",
        expected="values of these cases",
        fix="derive them with resolve_config",
    )
    config.check(ranks=ranks)
    check_trackers(config.track)
    targets = select_folders(Path(out), fold=fold, seeds=seeds)
    share_batch(config.training.batch_size, ranks)
    if config.preprocess.normalisation == AUTO:
        config = config.resolve_channels(cases.manifest.channels)
    if device is not None:
        _check_devices(config, device, jobs=len(targets))
    _check_folders(config, targets, resume=resume, force=force)
    manifest = cases.manifest
    if fold == EVERY_FOLD:
        targets = _select_existing(targets, manifest)
        _check_device_count(device or "", jobs=len(targets))
    where = str(cases.path) if isinstance(cases, PreparedFolder) else manifest.name
    may_be_empty = isinstance(cases, RawFolder) and bool(cases.listed[1])
    _check_cases(config, cases, where=where, may_be_empty=may_be_empty)
    if init is not None:
        _check_init(config, init, manifest)
    check_labels(config, manifest.labels)
    splits = split_cases(
        manifest,
        list(dict.fromkeys(each.fold for each in targets)),
        config.dataset.domains,
        exclude_patients=config.dataset.exclude_patients or (),
        where=where,
        may_be_empty=may_be_empty,
    )
    sides = {name: check_sides(config, manifest, cases.geometries(training)) for name, (training, _) in splits.items()}
    sites = {name: _list_sites(config, cases, *split, ranks=ranks) for name, split in splits.items()}
    jobs = [
        Job(replace_seed(config, each.seed), each, *splits[each.fold], sides[each.fold], sites[each.fold])
        for each in targets
    ]
    for job in jobs:
        if config.training.useful is not None:
            SlowCases(job.config, cases, job.training_ids, job.folder.path).read(force=force)
    return jobs


def resolve_config(
    config: RunConfig, cases: RawFolder | PreparedFolder, *, say: Callable[[str], None] | None = to_stderr
) -> RunConfig:
    """Derive the values that a configuration leaves to the data.

    Of raw cases the spacing is final, since preparing needs it; patch and strides follow from the prepared cases.

    Args:
        config: the run; it is returned unchanged if no key says ``auto``.
        cases: raw or prepared folder.
        say: called with a sentence for each derived value; None says nothing.

    Raises:
        UsageError: another key is wrong, there is no case, or the images are too small for the network.
        CaseError: the first case, if no header can be read.
    """
    is_prepared = isinstance(cases, PreparedFolder)
    if config.preprocess.normalisation == AUTO:
        config = config.resolve_channels(cases.manifest.channels)
        if say is not None and not is_prepared:
            say(f"auto: {NORMALISATION} = {config.preprocess.normalisation}")
    if not config.automatic:
        return config
    config.check()
    training = [case.case_id for case in cases.manifest.select(split="training")]
    spacing = cases.recipe.spacing_mm if isinstance(cases, PreparedFolder) else None
    geometries = list(cases.geometries(training))
    if training and not geometries and isinstance(cases, RawFolder):
        cases.read_geometry(training[0])  # raises
    resolved, found = config.resolve(geometries, spacing_mm=spacing)
    for key, value in found.items():
        if say is not None and (key == SPACING) != is_prepared:
            say(f"auto: {key} = {value}")
    return resolved


def check_same_run(config: RunConfig, run: Path) -> None:
    """Raise if a fold of the run was started with another configuration.

    Raises:
        UsageError: the configurations differ.
    """
    for found in fold_folders(run):
        stored, current = stored_run(found.path), replace_seed(config, found.seed)
        if stored is not None and newest_checkpoint(found.path) is not None:
            check_same_config(stored, current.as_json(), complete=partial(complete_run, current=current))


def replace_seed(config: RunConfig, seed: int | None) -> RunConfig:
    """Copy a configuration with another seed; None keeps the seed."""
    return config if seed is None else config.model_copy(update={"seed": seed})


def _select_existing(targets: Sequence[FoldFolder], manifest: Manifest) -> list[FoldFolder]:
    """Select the folds up to the last one of the data set."""
    last = max((case.fold for case in manifest.select(split="training") if case.fold is not None), default=0)
    return [each for each in targets if int(each.fold) <= last]


def _list_sites(
    config: RunConfig,
    cases: RawFolder | PreparedFolder,
    training: Sequence[str],
    validation: Sequence[str],
    *,
    ranks: int,
) -> Sites:
    """Split a fold's cases over the sites of a decentralized training."""
    if config.federated is None:
        return {}
    require(
        ranks == 1,
        "federated",
        got=f"{ranks} processes",
        expected="one process, which simulates the sites in turn",
        fix="start without torchrun, or train several folds on several devices",
    )
    sites = split_sites(cases.manifest, training, validation, by=config.federated.sites)
    sizes = [len(own) for own, _ in sites.values()]
    build_federated(config.federated, sizes, objective=None, optimizer=None)  # raises for what no graph can do
    if isinstance(cases, PreparedFolder):
        classes: dict[str, set[int] | None] = {}
        for site, (own, _) in sites.items():
            found = [cases.find_classes(case_id) for case_id in own]
            classes[site] = None if None in found else set[int]().union(*filter(None, found))
        check_site_labels(cases.manifest.classes, classes)
    return sites


def _check_devices(config: RunConfig, device: str, *, jobs: int) -> None:
    _check_device_count(device, jobs=jobs)
    for each in device.split(","):
        resolve_channels_last(config.training.channels_last, each)


def _check_device_count(device: str, *, jobs: int) -> None:
    expected = f"at most one device per training, {jobs}"
    require(len(device.split(",")) <= jobs, "--device", got=device, expected=expected, fix="add --fold cv or --seeds")


def _check_cases(config: RunConfig, cases: RawFolder | PreparedFolder, *, where: str, may_be_empty: bool) -> None:
    """Raise without training cases, or if they do not fit."""
    config.build_recipe(cases.manifest.channels)  # raises for another number of channels
    if isinstance(cases, PreparedFolder):
        _check_prepared_for(config, cases)
    require(
        may_be_empty or cases.manifest.select(split="training"),
        "--data" if isinstance(cases, PreparedFolder) else "--raw",
        got=f"no training case in {where}",
        expected="at least one training case",
        fix="correct the folder",
    )


def _check_init(config: RunConfig, init: str, manifest: Manifest) -> None:
    """Raise if the network cannot start from a model."""
    labels, channels = manifest.labels, manifest.channels
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # the training shows them
        net = config.build_net(classes=labels.outputs, channels=len(channels))
        quantize = None if config.quantization is None else config.quantization.bind()
        load_initial_weights(net, init, quantize=quantize, channels=channels, labels=labels)


def _check_folders(config: RunConfig, targets: Sequence[FoldFolder], *, resume: bool, force: bool) -> None:
    """Raise if the jobs can neither start nor resume in their folders.

    A run with any checkpoint is resumed with the settings of its start, in all its folds.
    """
    if not resume:
        for each in targets:
            check_new_run(each.path)
    if not force:
        check_same_run(config, targets[0].run)
    if not any(newest_checkpoint(each.path) for each in targets):
        config.check_takes_effect()


def _check_prepared_for(config: RunConfig, folder: PreparedFolder) -> None:
    """Raise if the cases were prepared from another data set or recipe.

    Prediction preprocesses new scans by the configuration.
    """
    name, recipe = config.dataset.name, config.build_recipe(folder.manifest.channels)
    fix = "correct the key, or prepare again"
    expected = f"{folder.manifest.name}, the data set of {folder.path}"
    require(is_dataset(folder.manifest, name), "dataset.name", got=name, expected=expected, fix=fix)
    _check_labels_prepared(config, folder)
    used, given = asdict(folder.recipe), asdict(recipe)
    different = [key for key in given if used[key] != given[key]]
    require(
        folder.recipe.completes(recipe),
        "preprocess",
        got={key: given[key] for key in different},
        expected=f"{ {key: used[key] for key in different} }, the recipe of {folder.path}",
        fix=fix,
    )


def _check_labels_prepared(config: RunConfig, folder: PreparedFolder) -> None:
    """Raise if the configuration gives other labels than the cases.

    Training takes the labels of the cases.
    """
    given = config.dataset.reader_options()
    for key in (each.name for each in fields(LabelScheme) if each.name in given):
        wanted, found = given[key], getattr(folder.manifest, key)
        is_same = wanted == found and (key != "regions" or [*wanted] == [*found])  # the order of the outputs
        expected, fix = f"{found}, as in {folder.path}", "correct the key, or prepare again (unchanged cases are kept)"
        require(is_same, f"dataset.{key}", got=wanted, expected=expected, fix=fix)
